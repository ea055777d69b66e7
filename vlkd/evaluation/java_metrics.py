"""METEOR and SPICE, which pycocoevalcap computes in Java. What cannot run says why; nothing is downloaded."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd.errors import VlkdError

if TYPE_CHECKING:
    from pycocoevalcap.meteor.meteor import Meteor

Sentences = Mapping[str, Sequence[str]]
JAVA_METRICS: tuple[str, ...] = ("METEOR", "SPICE")
_EMPTY = "."  # METEOR's line protocol has no empty reference


class JavaMetrics:
    """METEOR (one Java process for all models of a run: it starts in about 7 s, then scores 240 captions in
    0.2 s) and SPICE (only where its CoreNLP models are already there).

    Use as a context manager, opened once, and pass it to ``caption_scores``.
    """

    def __init__(self, names: Sequence[str] = JAVA_METRICS) -> None:
        self.reasons = {name: reason for name in names if (reason := why_not(name))}
        self._names = tuple(names)
        self._meteor: Meteor | None = None

    def __enter__(self) -> JavaMetrics:
        if "METEOR" in self._names and "METEOR" not in self.reasons:
            self._start_meteor()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_meteor()

    def score(self, references: Sentences, candidates: Sentences) -> tuple[dict[str, float], dict[str, str]]:
        """(scores, reasons for what is absent); sentences are tokenised, one candidate a picture."""
        scores: dict[str, float] = {}
        for name in self._names:
            if name in self.reasons:
                continue
            scorer = self._meteor_score if name == "METEOR" else _spice_score
            try:
                scores[name] = scorer(references, candidates)
            except (OSError, ValueError, subprocess.CalledProcessError) as error:
                self.reasons[name] = f"{name}'s Java program failed: {error}"
                self._stop_meteor()
        return scores, dict(self.reasons)

    def _start_meteor(self) -> None:
        from pycocoevalcap.meteor.meteor import Meteor

        try:
            self._meteor = Meteor()
        except OSError as error:
            self.reasons["METEOR"] = f"METEOR's Java program did not start: {error}"

    def _stop_meteor(self) -> None:
        if self._meteor is None:
            return
        meteor, self._meteor = self._meteor, None
        if meteor.lock.locked():  # left so by a call that failed; the destructor would wait for it for ever
            meteor.lock.release()
        process = meteor.meteor_p
        if process.stdin is not None:
            with suppress(OSError):  # what the dead program never read cannot be flushed
                process.stdin.close()
        process.kill()
        process.wait()

    def _meteor_score(self, references: Sentences, candidates: Sentences) -> float:
        if self._meteor is None:
            raise ValueError("it was not started; open JavaMetrics with a `with` statement")
        truth = {key: [text or _EMPTY for text in texts] for key, texts in references.items()}
        mean, _ = self._meteor.compute_score(truth, dict(candidates))
        return float(mean)


def why_not(name: str) -> str | None:
    """Why ``name`` ("METEOR" or "SPICE") cannot be computed on this machine; None when it can."""
    java = shutil.which("java")
    if java is None:
        return f"{name} needs Java, and no `java` is on the PATH"
    try:
        subprocess.run([java, "-version"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{name} needs Java, and `java -version` failed: {error}"
    missing = [path for path in _jars(name) if not path.is_file()]
    if not missing:
        return None
    if name == "SPICE":
        return (
            f"SPICE needs the Stanford CoreNLP 3.6.0 models, which pycocoevalcap does not ship "
            f"({missing[0].name} is missing); fetch them with "
            "`python -m pycocoevalcap.spice.get_stanford_models`"
        )
    return f"{name} needs {missing[0].name} in the pycocoevalcap package, and it is missing"


def _jars(name: str) -> list[Path]:
    spec = find_spec("pycocoevalcap")  # a namespace package: it has no __file__
    if spec is None or not spec.submodule_search_locations:
        raise VlkdError("captions are scored by pycocoevalcap, which is not installed: pip install vlkd[eval]")
    package = Path(next(iter(spec.submodule_search_locations)))
    if name == "METEOR":
        return [package / "meteor" / "meteor-1.5.jar", package / "meteor" / "data" / "paraphrase-en.gz"]
    library = package / "spice" / "lib"
    core = "stanford-corenlp-3.6.0"
    return [package / "spice" / "spice-1.0.jar", library / f"{core}.jar", library / f"{core}-models.jar"]


def _spice_score(references: Sentences, candidates: Sentences) -> float:
    from pycocoevalcap.spice.spice import Spice

    mean, _ = Spice().compute_score(dict(references), dict(candidates))
    return float(mean)
