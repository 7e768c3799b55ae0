"""Arms that start from weights on disk: theirs in all but the last layer, scaled as they expect."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from synthgen.artifacts import sha256_file
from synthgen.classifier.arms import CLASSICAL_ARMS
from synthgen.classifier.draws import RealImages
from synthgen.classifier.networks import build_classifier
from synthgen.classifier.prediction import predict_logits
from synthgen.classifier.pretrained import Standardised, Weights, build_network, load_weights
from synthgen.classifier.training import train_classifier
from synthgen.config import ClassifierSection, WeightsSection, parse_config
from synthgen.errors import ConfigError

CPU = torch.device("cpu")
N_CLASSES = 3


def _section(path: Path, network: str = "small_cnn", **changed: object) -> ClassifierSection:
    weights = WeightsSection(file=path.name, sha256=sha256_file(path))
    return ClassifierSection(
        **{"network": network, "width": 4, "steps": 20, "batch": 12, "weights": weights, **changed}
    )


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Weights of a small_cnn for colour images of ten other classes."""
    torch.manual_seed(7)
    path = tmp_path / "weights.safetensors"
    save_file(build_classifier("small_cnn", 16, 3, 10, 4).state_dict(), path)
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", ["small_cnn", "resnet18", "timm:resnet18"])
def test_all_but_the_last_layer_is_the_files(tmp_path: Path, network: str, channels: int) -> None:
    torch.manual_seed(7)
    there = build_classifier(network, 32, 3, 10, 4).eval()
    path = tmp_path / "weights.safetensors"
    save_file(there.state_dict(), path)
    section = _section(path, network)
    built = build_network(section, 32, channels, N_CLASSES, load_weights(tmp_path, section)).eval()
    expected = load_file(path)
    inner = built.network.network if channels == 1 else built.network
    head = {"small_cnn": "head", "resnet18": "fc", "timm:resnet18": "fc"}[network]
    for name, value in inner.state_dict().items():
        if not name.startswith(f"{head}."):
            assert torch.equal(value, expected[name]), name
    # with the file's own last layer it computes what torchvision's recipe for such weights computes
    setattr(inner, head, getattr(there, head))
    images = torch.rand(5, channels, 32, 32)
    shown = normalize(images.expand(-1, 3, -1, -1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        torch.testing.assert_close(built(images * 2 - 1), there(shown), rtol=1e-4, atol=1e-4)


def _trained(section: ClassifierSection, weights: Weights | None, reals: RealImages) -> nn.Module:
    return train_classifier(
        CLASSICAL_ARMS["real"],
        reals,
        None,
        section,
        n_classes=N_CLASSES,
        real_share=0.0,
        mix_alpha=0.3,
        seed=0,
        device=CPU,
        weights=weights,
    )


def _stripes(n: int, seed: int) -> RealImages:
    """Class k has stripes of period 2, 4 or 8, at any phase, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % N_CLASSES
    phase = rng.integers(0, 8, n)
    rows = (np.arange(16)[None] + phase[:, None]) // (2 ** labels[:, None]) % 2  # (n, 16)
    images = rows[:, :, None, None] * 90 + rng.integers(0, 140, (n, 16, 16, 1))
    return RealImages(images.astype(np.uint8), labels, np.arange(n))


def test_weights_that_know_the_matter_learn_it_sooner(tmp_path: Path) -> None:
    # trained on plenty of stripes, then nine images and ten steps
    plenty, few, unseen = _stripes(600, 1), _stripes(9, 2), _stripes(300, 3)
    long = ClassifierSection(width=8, steps=120, batch=32)
    colour = RealImages(plenty.images.repeat(3, axis=3), plenty.labels, plenty.bank_rows)
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in _trained(long, None, colour).state_dict().items()}, path)
    half = WeightsSection(file=path.name, sha256=sha256_file(path), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    section = ClassifierSection(width=8, steps=10, batch=9, weights=half)
    right = {}
    for name, own in (("file", section), ("random", section.model_copy(update={"weights": None}))):
        network = _trained(own, load_weights(tmp_path, own), few)
        right[name] = np.mean(predict_logits(network, unseen.images, CPU).argmax(1) == unseen.labels)
    assert right["file"] > right["random"] + 0.2


def test_every_arm_and_repeat_starts_from_the_file_with_a_last_layer_of_its_seed(small: Path) -> None:
    section = _section(small)
    weights = load_weights(small.parent, section)
    torch.manual_seed(1)
    one = build_network(section, 16, 1, N_CLASSES, weights).state_dict()
    torch.manual_seed(1)
    again = build_network(section, 16, 1, N_CLASSES, weights).state_dict()
    other = build_network(section, 16, 1, N_CLASSES, weights).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert {name for name in one if not torch.equal(one[name], other[name])} == {
        name for name in one if ".head." in name
    }


def test_a_training_that_is_not_handed_the_weights_is_refused(small: Path) -> None:
    with pytest.raises(ConfigError, match="not handed"):
        _trained(_section(small), None, _stripes(12, 0))


def _without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("features.0.weight"), "lacks features.0.weight"),
        (lambda state: {**state, "layer9.weight": torch.zeros(2)}, "has not, layer9.weight"),
        (lambda state: {**state, "features.0.weight": torch.zeros(4, 1, 3, 3)}, "another shape features.0.weight"),
    ],
    ids=["lacks", "more", "grey"],
)
def test_weights_of_another_network_are_refused_by_tensor(
    small: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    save_file(change(load_file(small)), small)
    section = _section(small)
    with pytest.raises(ConfigError, match=said):
        build_network(section, 16, 3, N_CLASSES, load_weights(small.parent, section))


def test_a_file_without_batch_norms_counters_will_do(small: Path) -> None:
    save_file({k: v for k, v in load_file(small).items() if not k.endswith("num_batches_tracked")}, small)
    section = _section(small)
    built = build_network(section, 16, 3, N_CLASSES, load_weights(small.parent, section))
    assert isinstance(built, Standardised)


def test_a_missing_file_other_content_and_a_pickle_are_refused(small: Path) -> None:
    section = _section(small)
    old = section.weights.sha256
    torch.save({"features.0.weight": torch.zeros(1)}, small)
    with pytest.raises(ConfigError, match=f"has the sha256 {sha256_file(small)}, params.yaml names {old}"):
        load_weights(small.parent, section)
    with pytest.raises(ConfigError, match="no safetensors file"):
        load_weights(small.parent, _section(small))
    small.write_bytes(b"")
    with pytest.raises(ConfigError, match="no safetensors file"):
        load_weights(small.parent, _section(small))
    small.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_weights(small.parent, section)


def test_a_pipe_under_the_files_name_is_refused_and_not_waited_for(small: Path) -> None:
    section = _section(small)
    small.unlink()
    os.mkfifo(small)
    code = (
        "import sys; from pathlib import Path; from synthgen.classifier.pretrained import load_weights\n"
        "from synthgen.config import ClassifierSection\n"
        "load_weights(Path(sys.argv[1]), ClassifierSection.model_validate_json(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(small.parent), section.model_dump_json()]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no regular file" in done.stderr


def test_params_yaml_names_them() -> None:
    weights = {"file": "w.safetensors", "sha256": "0" * 64, "mean": [0.5, 0.5, 0.5]}
    params = {"source": {"type": "digits"}, "evaluate": {"arms": ["real"]}, "challenge": {"arms": ["best+synthetic"]}}
    config = parse_config({**params, "classifier": {"weights": weights}})
    assert config.classifier.weights == WeightsSection(file="w.safetensors", sha256="0" * 64, mean=(0.5, 0.5, 0.5))
    for wrong in ({"sha256": "0" * 63}, {"std": [0.0, 1.0, 1.0]}, {"mean": [0.5]}, {"file": ""}, {"url": "x"}):
        with pytest.raises(ConfigError, match=r"classifier\.weights"):
            parse_config({**params, "classifier": {"weights": {**weights, **wrong}}})
