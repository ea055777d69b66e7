"""Distil a BERT's attention map, by eager maps and by attention_mse: the same losses. Arguments: batch length steps."""

import sys
import time

import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from vlkd.models import capture_attention
from vlkd_kernels import attention_mse

batch, length, steps = map(int, sys.argv[1:] or (16, 128, 8))
tokens = torch.randint(1000, (steps, batch, length), generator=torch.Generator().manual_seed(0))


def bert(width: int, attention: str) -> BertModel:
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 1024}
    return BertModel(BertConfig(vocab_size=1000, attn_implementation=attention, **sizes)).eval()


for name in ("eager", "sdpa"):
    torch.manual_seed(0)
    teacher, student, losses, times = bert(768, name).requires_grad_(False), bert(384, name), [], []
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    for ids in tokens:
        begin = time.perf_counter()
        if name == "eager":  # before
            loss = F.mse_loss(*(model(ids, output_attentions=True).attentions[-1] for model in (student, teacher)))
        else:  # after: the models keep their fused attention, the loss takes queries and keys
            with capture_attention(student) as s, capture_attention(teacher) as t:
                student(ids), teacher(ids)
            loss = attention_mse(*s[-1][:2], *t[-1][:2])
        loss.backward(), optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
        times.append(time.perf_counter() - begin)
    print(f"{name:>5}: {min(times):.3f} s a step, losses {losses[0]:.5e} to {losses[-1]:.5e}")
