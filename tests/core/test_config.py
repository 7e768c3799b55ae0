"""params.yaml: what is refused, and that the message names the place and the nearest key (FAULTS row 32)."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.config import POLICIES, Config, load_config, parse_config, read_yaml
from synthgen.errors import ConfigError

MINIMAL = {"source": {"type": "digits"}, "evaluate": {"arms": ["balanced"]}, "challenge": {"arms": ["best+synthetic"]}}


def _write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_repositorys_own_params_are_valid() -> None:
    config = load_config(Path(__file__).parents[2] / "params.yaml")
    assert config.source.type == "digits"
    assert config.source.simulate_scarcity is not None


def test_defaults_hold_the_lesson_of_the_experiments() -> None:
    config = parse_config(MINIMAL)
    # synthetic images of all classes at one rate, few, not transformed again (EXPERIMENTS, 1)
    policy = POLICIES["synthetic"]
    assert (policy.share, policy.classes, policy.transforms, policy.shares) == (0.25, "all", "none", {})
    assert config.plan.folds == 5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pretrain": {"kimgs": 3.0}}, r"pretrain\.kimgs: unknown key; did you mean 'kimg'"),
        ({"sead": 1}, r"sead: unknown key; did you mean 'seed'"),
        ({"pretrain": {"network": {"latent": 3}}}, r"pretrain\.network\.latent: unknown key; did you mean 'latents'"),
        ({"pretrain": {"kimg": "1e-4"}}, r"pretrain\.kimg: .*got '1e-4'"),
        ({"seed": True}, r"seed: .*got 'True'"),
        ({"seed": -1}, r"seed: .*greater than or equal to 0.*got '-1'"),
        ({"prepare": {"image_size": 48}}, r"prepare\.image_size: .*8, 16, 28, 32, 64 or 128.*got '48'"),
        ({"challenge": {"arms": ["best+x"], "policies": {"x": {"share": 1.0}}}}, r"policies\.x\.share: .*less than 1"),
        ({"challenge": {"arms": ["best+x"], "policies": {"../x": {}}}}, r"challenge\.policies\.\.\./x"),
        (
            {"challenge": {"arms": ["best+searched"], "policies": {"searched": {}}}},
            r"challenge\.policies: .*'searched' means what `synthgen search` chooses; take another name",
        ),
        ({"search": {"minutes": 0.0}}, r"search\.minutes: .*greater than 0.*got '0.0'"),
        ({"search": {"trainings": 0}}, r"search\.trainings: .*greater than or equal to 1"),
        ({"evaluate": {"arms": ["balanced"], "repeats": 1}}, r"evaluate\.repeats: "),
        ({"source": {"type": "imagefolders"}}, r"source\.type: "),
        ({"synthesize": {"min_density": 1.5}}, r"synthesize\.min_density: .*less than or equal to 1.*got '1.5'"),
        (
            {"synthesize": {"max_agreement": 0.4}},
            r"synthesize: .*max_agreement is 0\.4, below min_agreement, 0\.5: no sample could be accepted",
        ),
        (
            {"synthesize": {"max_nearest_ratio": 0.05}},
            r"synthesize: .*max_nearest_ratio is 0\.05, below min_nearest_ratio, 0\.1: no sample could be accepted",
        ),
    ],
)
def test_fault_32_wrong_values_name_their_dotted_path(change: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse_config({**MINIMAL, **change})


def test_fault_32_yaml_bomb_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{b}: &{b} [{','.join(['*' + a] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    started = time.monotonic()
    with pytest.raises(ConfigError, match="alias"):
        read_yaml(_write(tmp_path, "\n".join(lines)))
    assert time.monotonic() - started < 5


def test_fault_32_duplicate_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="duplicate key"):
        read_yaml(_write(tmp_path, "seed: 1\nseed: 2\n"))


@pytest.mark.parametrize("text", ["seed: [1", "\tseed: 1", "a: !!python/object:os.system x", "- " * 5000 + "x"])
def test_fault_32_broken_or_hostile_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(read_yaml(_write(tmp_path, text)))


def test_yaml_1_2_reads_numbers_and_words_as_people_mean_them(tmp_path: Path) -> None:
    values = read_yaml(_write(tmp_path, "a: 1e-4\nb: no\nc: 0123\n"))
    assert values == {"a": 1e-4, "b": "no", "c": 123}


def test_missing_huge_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is missing"):
        load_config(tmp_path / "params.yaml")
    with pytest.raises(ConfigError, match="limit of 1000000"):
        read_yaml(_write(tmp_path, "#" * 1_000_001))
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "params.yaml")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
)
def test_anything_is_either_a_config_or_a_config_error(values: object) -> None:
    try:
        assert isinstance(parse_config(values), Config)
    except ConfigError as error:
        assert str(error)
