import pytest

from vlkd.errors import VlkdError
from vlkd.recipes import load_recipe, recipe_names


def test_every_packaged_recipe_is_valid():
    assert {"demo", "quick"} <= set(recipe_names())
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_overrides_reach_nested_keys_with_their_types():
    recipe = load_recipe(
        "demo", ["seed=7", "student.width=32", "distillation.distance=kl", "distillation.in_batch=true"]
    )
    assert (recipe.seed, recipe.student.width, recipe.distillation.distance) == (7, 32, "kl")
    assert recipe.distillation.in_batch is True


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.wdith=32", r"unknown key 'student.wdith': did you mean 'width'"),
        ("lr=1", r"unknown key 'lr': known keys here are"),
        ("student.width=nine", r"'student.width'.*integer.*'nine'"),
        ("student.width=30", r"width 30 must be a multiple of heads 4"),
        ("student.heads=2", r"teacher.heads \(4\) and student.heads \(2\) must be equal"),
        ("evaluation.max_tokens=23", r"max_tokens \(23\) may be at most 18"),
        ("distillation.temperature=0", r"'distillation.temperature'.*greater than 0"),
        ("distillation.temperature=.inf", r"'distillation.temperature'.*finite number"),
        ("schedules.teacher.lr=inf", r"'schedules.teacher.lr'.*finite number"),
        ("distillation.alpha=1e999", r"'distillation.alpha'.*finite number"),
        ("schedules.teacher.batch=0", r"'schedules.teacher.batch'"),
        ("width", r"written key=value"),
        ("student.width.x=1", r"'width' holds a value"),
    ],
)
def test_a_mistake_gets_one_clear_sentence(override, message):
    with pytest.raises(VlkdError, match=message) as caught:
        load_recipe("demo", [override])
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(VlkdError, match="no recipe 'nothing'"):
        load_recipe("nothing")
    with pytest.raises(VlkdError, match="no recipe file"):
        load_recipe(str(tmp_path / "nothing.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(VlkdError, match="not valid YAML"):
        load_recipe(str(broken))
    broken.write_text("- 1\n")
    with pytest.raises(VlkdError, match="must be a YAML mapping"):
        load_recipe(str(broken))
    broken.write_text("seed: 1\n")
    with pytest.raises(VlkdError, match="lacks the required key 'name'"):
        load_recipe(str(broken))
