"""params.yaml as checked, frozen sections: one per stage, and a stage is handed only its own.

Owns reading and judging the file (YAML bombs, duplicate and unknown keys, wrong types); refuses
to guess: an unknown key is an error that names the nearest known one.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from synthgen.errors import ConfigError

MAX_PARAMS_BYTES = 1_000_000

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0.0)]

Architecture = Literal["resnet", "dcgan", "style", "translate_masked", "translate_free", "super_resolution"]
Conditioning = Literal["projection", "concatenation", "none"]
Activation = Literal["relu", "leaky_relu", "selu"]
GeneratorOutput = Literal["tanh", "sigmoid"]
DiscriminatorNorm = Literal["none", "batch", "spectral"]
LossName = Literal["relativistic", "non_saturating", "hinge", "wasserstein"]


class Section(BaseModel):
    """Base of all sections: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _without_default(values: dict[str, Any], key: str, default: Any) -> dict[str, Any]:
    """`values` without a key that came later and has its default: digests of older configs stay as they were."""
    return {name: value for name, value in values.items() if name != key or value != default}


class ScarcitySection(Section):
    """Makes plentiful classes scarce on purpose, to try the pipeline where the truth is known."""

    keep: dict[str, Count] = Field(description="class name -> real images left for training and validation")
    surplus: Literal["test", "drop"] = "test"


class SourceSection(Section):
    """Where the raw images come from."""

    type: Literal["digits", "imagefolder", "csv", "parquet", "npz", "torchvision"]
    path: str = "data/raw"
    csv_file: str = "labels.csv"
    torchvision_name: str | None = None
    simulate_scarcity: ScarcitySection | None = None
    unlabelled: str | None = Field(
        default=None, description="folder of images without a label, inside source.path, e.g. data/raw/.unlabelled"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_default(handler(self), "unlabelled", None)


class PlanSection(Section):
    """Which classes are scarce, how the folds are drawn, how many images to make."""

    folds: Annotated[int, Field(ge=2, le=50)] = 5
    generator_seeds: Count | None = Field(
        default=None, description="with a test set of your own: generators trained, at most `folds`; default: as many"
    )
    scarce: list[str] | None = None
    scarce_below: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    strategy: Literal["adapted", "shared", "scratch"] = "adapted"
    target: Literal["median"] | Count = "median"
    min_train_images: Count = 2


class GroupsSection(Section):
    """How images of one object are found, so that they stay on one side of every split."""

    id_pattern: str | None = None
    id_gap: Literal["auto", "off"] | Count = "auto"
    perceptual_bits: Annotated[int, Field(ge=0, le=16)] = 4
    pixel_tolerance: Annotated[float, Field(gt=0.0, le=255.0)] = 12.0
    correlation: Literal["auto", "off"] | Annotated[float, Field(gt=0.0, le=1.0)] = "auto"
    correlation_shift: Annotated[int, Field(ge=0, le=16)] = 4
    leaks: Literal["refuse", "quarantine"] = "refuse"


class PrepareSection(Section):
    """What every image is turned into, and what is refused."""

    image_size: Literal[8, 16, 28, 32, 64, 128] = 32
    channels: Literal[1, 3] = 3
    background: Annotated[int, Field(ge=0, le=255)] = 0
    max_pixels: Count = 64_000_000
    max_bytes: Count = 256_000_000
    animated: Literal["refuse", "first_frame"] = "refuse"
    empty_class: Literal["error", "skip"] = "error"
    masks: str | None = Field(
        default=None, description="folder of PNG masks inside source.path (docs/schema.md), e.g. data/raw/.masks"
    )
    groups: GroupsSection = GroupsSection()


class GeneratorSection(Section):
    """Kind and size of the conditional generator and discriminator."""

    architecture: Architecture = "resnet"
    conditioning: Conditioning = "projection"
    auxiliary: bool = Field(default=False, description="a second head of D names the class (AC-GAN)")
    latents: Count = 48
    embedding: Count = 32
    channels: Count = Field(default=16, description="channels at full resolution; doubled at each halving")
    max_channels: Count = 128
    minibatch_std: NotNegative = 3.0
    activation: Activation = "leaky_relu"
    output: GeneratorOutput = "tanh"
    d_norm: DiscriminatorNorm | Literal["auto"] = Field(
        default="auto", description="auto: spectral for resnet, batch for dcgan, none for the others"
    )
    dropout: Share = 0.0
    progressive: bool = Field(default=False, description="grow both networks from 8 px")
    low_size: Count = Field(default=32, description="side of the images that super_resolution starts from")


class AdaptiveSection(Section):
    """Adaptive strength of DiffAugment (ADA): the probability of each transform follows D's overfitting."""

    target: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.6
    ramp_kimg: Positive = Field(default=100.0, description="thousands of images from probability 0 to 1")


class MonitorSection(Section):
    """What is measured at every tick, on features of a network of our own."""

    samples_per_class: Annotated[int, Field(ge=4)] = 64
    reals_per_class: Annotated[int, Field(ge=4)] = 100
    held_out: Share = Field(default=0.05, description="of the groups of each class, kept from the GAN to judge it by")
    min_class_images: Count = Field(default=40, description="a smaller class holds nothing out")
    feature_steps: Annotated[int, Field(ge=0)] = 200


class StopSection(Section):
    """When a training ends before its budget, and when it is taken back."""

    plateau_ticks: Annotated[int, Field(ge=0)] = Field(default=0, description="ticks without a better score; 0: never")
    equilibrium_ticks: Annotated[int, Field(ge=0)] = Field(
        default=0, description="ticks in a row in which D is right about half of the time; 0: never"
    )
    equilibrium_width: Annotated[float, Field(gt=0.0, le=0.5)] = 0.02
    min_nearest_ratio: NotNegative = Field(
        default=0.0, description="stop where samples lie nearer to training images than this; 0: never"
    )
    collapse_ratio: NotNegative = Field(
        default=0.05, description="of the reals' diversity; below it after above: taken back"
    )
    max_rollbacks: Annotated[int, Field(ge=0)] = 3
    rollback_lr: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5


class BaseGanSection(Section):
    """A shared GAN trained before, pinned by its generator digest."""

    path: str
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PretrainSection(Section):
    """Training of the shared conditional GAN of one fold."""

    network: GeneratorSection = GeneratorSection()
    kimg: Positive = 140.0
    batch: Annotated[int, Field(ge=4)] = 64
    class_temper: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="a class is shown by its count to this power: 0 all equally, 1 as they are"
    )

    optimizer: Literal["adam", "rmsprop"] = "adam"
    g_lr: Positive = 8e-4
    d_lr: Positive = 8e-4
    betas: tuple[float, float] = (0.0, 0.99)
    d_steps: Count = 1
    lr_decay_from: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    initialisation: Literal["default", "normal", "orthogonal"] = "default"
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.998

    loss: LossName = "relativistic"
    label_smoothing: Share = 0.0
    label_noise: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    auxiliary_weight: NotNegative = 1.0
    r1_gamma: NotNegative = 0.01
    r2_gamma: NotNegative = 0.01
    r1_every: Count = 4
    wasserstein_penalty: NotNegative = 0.0
    lecam: NotNegative = 0.0
    consistency: NotNegative = 0.0
    clip_gradients: Positive | None = None

    style_mixing: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.9, description="how often two styles are mixed (architecture style); 0 suits small images"
    )
    class_ramp: Share = Field(default=0.0, description="share of the training in which the class input is let in")
    keep_weight: NotNegative = Field(
        default=1.0, description="of the change that translate_masked makes to a composite, so that it keeps its region"
    )
    grow_until: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    real_transforms: Annotated[float, Field(ge=0.0, le=1.0)] = 0.6
    diffaugment_translation: Annotated[float, Field(ge=0.0, le=0.5)] = 0.125
    diffaugment_cutout: Annotated[float, Field(ge=0.0, le=0.9)] = 0.2
    diffaugment_color: bool = False
    adaptive: AdaptiveSection | None = None
    flip: bool = False

    tick_kimg: Positive = 16.0
    monitor: MonitorSection = MonitorSection()
    stop: StopSection = StopSection()
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 on CUDA, else fp32")
    compile: bool = Field(default=False, description="torch.compile where no double backward runs (CUDA)")
    base: dict[str, BaseGanSection] | None = None
    unlabelled: bool = Field(
        default=False, description="show the images of source.unlabelled as one class more, which is never sampled"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_default(handler(self), "unlabelled", False)


class BoundarySection(Section):
    """A classifier as third player, whose decision boundary samples of the adapted class are drawn to (docs/gan.md)."""

    weight: NotNegative = Field(default=0.3, description="of the boundary term in G's loss; 0 only measures")
    certainty: Annotated[float, Field(gt=0.5, le=0.9)] = Field(
        default=0.75, description="probability of the label above which a sample is drawn towards the boundary"
    )
    warmup: Share = Field(default=0.25, description="share of the training in which the classifier learns alone")
    width: Count = Field(default=16, description="channels of the classifier's first stage")
    lr: Positive = 2e-3


class AdaptSection(Section):
    """Fine-tuning of the shared GAN to one scarce class (strategy `adapted`)."""

    kimg: Positive = 20.0
    lr_factor: Positive = 0.25
    shared_share: Share = 0.5
    freeze_blocks: Annotated[int, Field(ge=0)] = Field(
        default=0, description="first parts of D left as they are (FreezeD)"
    )
    boundary: BoundarySection | None = Field(default=None, description="a game of three; null: of two")


class ScratchSection(Section):
    """Training of a GAN on one class alone (strategy `scratch`)."""

    kimg: Positive = 60.0


class ProjectionSection(Section):
    """How training images are found in a generator's latent space (`synthesize.latents: between_reals`)."""

    reals: Annotated[int, Field(ge=2)] = Field(default=32, description="of each class, at most; drawn by the seed")
    steps: Count = 200
    restarts: Annotated[int, Field(ge=1, le=64)] = 2
    feature_weight: NotNegative = Field(default=0.1, description="of the teacher's features beside the pixels")
    prior_weight: NotNegative = Field(default=0.1, description="keeps latents as long as those of the training")
    jitter: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="points are moved by up to this share of the arc to a random latent"
    )
    neighbour: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.3, description="the same for classes of one object, which have no pairs"
    )


class MorphSection(Section):
    """A pool of morphs beside the GANs' samples (docs/morphs.md)."""

    pairs: Count = Field(default=400, description="of training images of a class that are registered, at most")
    reach: Share = Field(default=0.9, description="a sample lies at most this far on the way to its second image")
    variation: NotNegative = Field(
        default=0.7, description="of the deformations that plentiful classes show; 1: as far as they do"
    )


class SynthesizeSection(Section):
    """Sampling and selection of labelled synthetic images."""

    batch: Count = 64
    oversample: Annotated[float, Field(ge=1.0, le=20.0)] = 1.5
    truncation: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    latents: Literal["normal", "between_reals"] = Field(
        default="normal", description="random, or on arcs between training images of the class"
    )
    projection: ProjectionSection = ProjectionSection()
    morphs: MorphSection | None = Field(
        default=None, description="makes the pool `morphed` beside the generators'; null: none"
    )
    min_agreement: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    max_agreement: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="samples of which the teacher is surer are left out as too easy; 1: never"
    )
    min_nearest_ratio: Annotated[float, Field(ge=0.0)] = 0.1
    max_nearest_ratio: Positive | None = Field(
        default=None, description="samples further from every real are left out; default: never"
    )
    min_density: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="in so many neighbour balls of reals, over their k, a sample has to lie; 0: any"
    )
    min_diversity_ratio: Annotated[float, Field(ge=0.0)] = 0.2
    min_accepted: Share = Field(default=0.1, description="of the number wanted; fewer, and the class is refused")
    teacher_steps: Count = 400

    @model_validator(mode="after")
    def _room_between(self) -> "SynthesizeSection":
        if self.max_agreement < self.min_agreement:
            raise ValueError(
                f"max_agreement is {self.max_agreement}, below min_agreement, {self.min_agreement}: no sample could "
                "be accepted; raise the one or lower the other"
            )
        if self.max_nearest_ratio is not None and self.max_nearest_ratio < self.min_nearest_ratio:
            raise ValueError(
                f"max_nearest_ratio is {self.max_nearest_ratio}, below min_nearest_ratio, {self.min_nearest_ratio}: no "
                "sample could be accepted; raise the one or lower the other"
            )
        return self


class WeightsSection(Section):
    """Trained weights that every arm starts from, in a file of the user's."""

    file: Annotated[str, StringConstraints(min_length=1)] = Field(
        description="safetensors file of the network's state, relative to the project; its last layer is not used"
    )
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="of the file: its content decides the results, and params.yaml is what DVC watches"
    )
    mean: tuple[float, float, float] = Field(
        default=(0.485, 0.456, 0.406), description="of pixels in [0, 1] that the weights expect; default ImageNet's"
    )
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)


class ClassifierSection(Section):
    """The downstream classifier: the same for every arm."""

    network: str = "small_cnn"
    width: Count = 32
    steps: Count = 400
    batch: Annotated[int, Field(ge=2)] = 64
    lr: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-3
    label_smoothing: Share = 0.0
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of training, in every arm and the teacher; predictions are made in fp32"
    )
    weights: WeightsSection | None = Field(default=None, description="null: random ones, the same in every arm")


class TransformsSection(Section):
    """Amplitudes of the transforms that keep the label: for classical arms, the teacher and the reals GANs see."""

    rotate: Annotated[float, Field(ge=0.0, le=180.0)] = 12.0
    scale: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.12
    shift: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    shear: Annotated[float, Field(ge=0.0, le=45.0)] = 8.0
    brightness: Annotated[float, Field(ge=0.0, le=1.0)] = 0.15
    elastic: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False


class EvaluateSection(Section):
    """Classical arms: every way of training on real images alone that a user would otherwise pick."""

    arms: list[str]
    repeats: Annotated[int, Field(ge=2)] = 2
    crossfit: bool = Field(
        default=True, description="choose the classical arm inside each fold; false: on validation rows of all folds"
    )
    share: Share = 0.25
    mix_alpha: Positive = 0.3


class MixingSection(Section):
    """How synthetic images enter a training (docs/method.md, "Mixing")."""

    pool: Literal["default", "shared", "morphed"] = "default"
    share: Share = Field(default=0.25, description="of the draws of each class")
    shares: dict[str, Share] = Field(default={}, description="of single classes, by name, instead of `share`")
    classes: Literal["all", "scarce"] = Field(default="all", description="those that take `share`; the others 0")
    transforms: Literal["none", "mild", "classical"] = "none"
    loss_weight: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    labels: Literal["hard", "agreement"] = "hard"
    schedule: Literal["constant", "falling", "reals_last"] = "constant"
    at_most: Count | None = Field(default=None, description="different synthetic images of each class; default: all")
    blend: Literal["none", "mixup", "cutmix"] = Field(
        default="none", description="what of a real image goes into each synthetic one"
    )
    blend_alpha: Annotated[float, Field(gt=0.0, le=100.0)] = Field(default=0.3, description="Beta parameter of `blend`")


POLICIES = {"synthetic": MixingSection(), "shared": MixingSection(pool="shared")}
"""Policies that are always there; `challenge.policies` adds others or says these anew."""
MEASURED_POLICY = "synthetic"
"""The policy of the arm that the verdict is about, and of the data set that is released."""
SEARCHED_POLICY = "searched"
"""The policy that `synthgen search` chose for the fold; nobody else may use the name."""
PolicyName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class ChallengeSection(Section):
    """Arms with synthetic images, `BASE+POLICY`, and the policies."""

    arms: list[str]
    policies: dict[PolicyName, MixingSection] = {}
    choice: Literal["balanced_accuracy", "scarce_recall", "macro_f1"] = "balanced_accuracy"
    choice_errors: Annotated[float, Field(ge=0.0, le=10.0)] = Field(
        default=1.0, description="standard errors within which arms count as equal: the most regularised; 0: the best"
    )

    @field_validator("policies")
    @classmethod
    def _reserved(cls, policies: dict[str, MixingSection]) -> dict[str, MixingSection]:
        if SEARCHED_POLICY in policies:
            raise ValueError(f"the name {SEARCHED_POLICY!r} means what `synthgen search` chooses; take another name")
        return policies

    @property
    def searched_arms(self) -> list[str]:
        """Arms whose policy is searched for."""
        return [arm for arm in self.arms if arm.partition("+")[2] == SEARCHED_POLICY]


class SearchSection(Section):
    """The search among mixing policies, for arms `BASE+searched` (docs/method.md, "Search")."""

    minutes: Positive = Field(default=30.0, description="what its trainings may take, as measured on the first ones")
    trainings: Count | None = Field(default=None, description="how many, instead of minutes: the same on any machine")
    candidates: list[PolicyName] = Field(default=[], description="policies of challenge.policies to try as well")


class WorthSection(Section):
    """The learning curve on which the arm with synthetic images is placed."""

    fractions: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(
        default=[0.25, 0.5], min_length=1, max_length=6, description="of the objects of each scarce class"
    )


class CompareSection(Section):
    """How the gain and its interval are computed."""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    min_folds: Annotated[int, Field(ge=2)] = 5
    min_test_groups: Count = 5
    n_bootstrap: Annotated[int, Field(ge=200)] = 2000


class ReportSection(Section):
    """What the report shows."""

    title: str = "Do synthetic images help?"
    n_examples: Annotated[int, Field(ge=1, le=64)] = 12


class AssembleSection(Section):
    """The data set that users take."""

    release: Literal["accepted"] = "accepted"


class Config(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0)] = 0
    source: SourceSection
    transforms: TransformsSection = TransformsSection()
    classifier: ClassifierSection = ClassifierSection()
    plan: PlanSection = PlanSection()
    prepare: PrepareSection = PrepareSection()
    pretrain: PretrainSection = PretrainSection()
    adapt: AdaptSection = AdaptSection()
    scratch: ScratchSection = ScratchSection()
    synthesize: SynthesizeSection = SynthesizeSection()
    assemble: AssembleSection = AssembleSection()
    evaluate: EvaluateSection
    challenge: ChallengeSection
    search: SearchSection = SearchSection()
    compare: CompareSection = CompareSection()
    worth: WorthSection = WorthSection()
    report: ReportSection = ReportSection()

    @model_validator(mode="after")
    def _same_invariances(self) -> "Config":
        if self.pretrain.flip and not self.transforms.horizontal_flip:
            raise ValueError(
                "pretrain.flip is true but transforms.horizontal_flip is not: the GAN would know an invariance that "
                "the classical arms are not given; set both or neither"
            )
        return self


def read_yaml(path: Path) -> Any:
    """Reads a YAML 1.2 file made of plain values.

    Raises:
        ConfigError: missing, over 1 MB, not UTF-8, not YAML, with aliases (a YAML bomb needs them)
            or with a duplicate key.
    """
    try:
        size = path.stat().st_size
        if size > MAX_PARAMS_BYTES:
            raise ConfigError(f"{path} has {size} bytes, over the limit of {MAX_PARAMS_BYTES}; is it the right file?")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; run this from the project's folder or pass --project") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            if isinstance(event, AliasEvent):
                raise ConfigError(f"{path}: alias *{event.anchor} is refused; write the value out")
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ConfigError(f"{path} is not usable YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply to be a parameter file") from error


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in location:
        if isinstance(part, int):
            return []
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        location = problem["loc"]
        dotted = ".".join(str(part) for part in location) or "(top level)"
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(location[-1]), _known_keys(location[:-1]), n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"{dotted}: unknown key{hint}")
        else:
            lines.append(f"{dotted}: {problem['msg']}, got {str(problem['input'])[:80]!r}")
    return "; ".join(lines)


def parse_config(values: Any, where: str = "params.yaml") -> Config:
    """Checks plain values (as read from YAML) and returns the frozen config.

    Raises:
        ConfigError: with the dotted path of each wrong value and the nearest known key.
    """
    try:
        return Config.model_validate(_tuples(values))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error


def _tuples(values: Any) -> Any:
    # Strict validation takes no list for a tuple, and YAML knows only lists.
    for path in (("pretrain", "betas"), ("classifier", "weights", "mean"), ("classifier", "weights", "std")):
        values = _with_tuple(values, path)
    return values


def _with_tuple(values: Any, path: tuple[str, ...]) -> Any:
    if not path:
        return tuple(values) if isinstance(values, list) else values
    if not isinstance(values, dict) or path[0] not in values:
        return values
    return {**values, path[0]: _with_tuple(values[path[0]], path[1:])}


def load_config(path: Path) -> Config:
    """Reads and checks params.yaml.

    Raises:
        ConfigError: see `read_yaml` and `parse_config`.
    """
    return parse_config(read_yaml(path), str(path))
