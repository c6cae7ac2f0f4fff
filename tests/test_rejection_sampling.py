"""Facts about rejection sampling: a judge of a pipeline, and which of the drawn samples it lets through."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTImageProcessorPil,
)
from transformers.modeling_outputs import ImageClassifierOutput

import hf_vq_cli
from hf_vq import VQPipeline
from hf_vq.grids import as_grids
from hf_vq.hub import read_folder

from . import test_hierarchical_pipelines, test_pipelines, test_text_to_image
from .conftest import no_complaints
from .contracts import test_pipelines as contracts
from .test_pipelines import generator

NAMES = ["ant", "bee", "cat"]
BUILD = {"VQPipeline": test_pipelines.build, "VQVAE2Pipeline": test_hierarchical_pipelines.build}


class LinearConfig(PreTrainedConfig):
    model_type = "test_linear_judge"


class LinearJudge(PreTrainedModel):
    """Logits are a linear function of the pixels, the same whatever the order of the classes."""

    config_class = LinearConfig

    def __init__(self, config, scale=0.05):
        super().__init__(config)
        self.weights = nn.Parameter(torch.randn(3, 3 * 8 * 8, generator=generator(7)) * scale)
        self.post_init()

    def forward(self, pixel_values):
        assert not self.training
        order = [NAMES.index(self.config.id2label[label]) for label in range(3)]
        return ImageClassifierOutput(logits=pixel_values.flatten(1) @ self.weights[order].T)


def judged(pipe, names=NAMES):
    """The pipeline with a judge, which sees pictures of 8 pixels in colour."""
    options = {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.3] * 3, image_std=[0.6] * 3)
    pipe.register_modules(judge=LinearJudge(LinearConfig(**options)).train(), judge_processor=processor)
    return pipe


def resnet(**options):
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[8], depths=[1], layer_type="basic", **options
    )
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    return ResNetForImageClassification(config).eval(), processor


def draw(pipe, class_labels, generator, **options):
    return as_grids(pipe(class_labels, generator=generator, output_type="codes", **options).images)


def same(one, other):
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("name", BUILD)
def test_of_the_candidates_of_a_class_those_that_the_judge_is_surest_of_are_kept(name):
    pipe, options = judged(BUILD[name]()), {"temperature": 0.9, "top_k": 5, "guidance_scale": 1.5}
    kept = draw(pipe, [0, "cat", 0], generator(), acceptance_rate=0.3, candidate_batch_size=5, **options)
    seeds = torch.randint(2**63 - 1, (11,), generator=generator()).tolist()  # 2 / 0.3 and 1 / 0.3, rounded up
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    labels = [0] * 7 + [2] * 4
    candidates = draw(pipe, labels, sources, **options)
    pictures = pipe(labels, generator=[one.manual_seed(seed) for one, seed in zip(sources, seeds, strict=True)],
                    **options).images  # fmt: skip
    pixels = pipe.judge_processor([one.convert("RGB") for one in pictures], return_tensors="pt").pixel_values
    likings = pipe.judge.eval()(pixels).logits.softmax(1)[torch.arange(11), labels]
    assert len(likings.unique()) == 11
    (first, second, *_), cat = likings[:7].argsort(descending=True).tolist(), 7 + int(likings[7:].argmax())
    assert same(kept, [grid[[first, cat, second]] for grid in candidates])


@pytest.mark.parametrize("name", BUILD)
def test_where_all_are_kept_a_judge_changes_nothing(name):
    pipe = BUILD[name]()
    expected = draw(pipe, [0, 2], generator(), num_images_per_prompt=2)
    assert same(draw(judged(pipe), [0, 2], generator(), num_images_per_prompt=2), expected)


@pytest.mark.parametrize("name", BUILD)
def test_what_is_kept_depends_on_neither_the_batch_nor_the_neighbours(name):
    pipe, options = judged(BUILD[name]()), {"acceptance_rate": 0.25}
    together = draw(pipe, [0, 1, 1], [generator(seed) for seed in (4, 5, 6)], **options)
    alone = draw(pipe, [1], [generator(5)], **options, candidate_batch_size=1)
    assert same([grid[1:2] for grid in together], alone)
    other = draw(pipe, [1], [generator(6)], **options)
    assert same([grid[2:] for grid in together], other)
    assert not same(alone, other)


def test_samples_of_which_something_else_is_asked_have_candidates_of_their_own():
    pipe, known = judged(test_pipelines.build()), torch.arange(2).view(2, 1, 1).expand(2, 4, 4)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    options = {"known_codes": known, "known_mask": mask, "acceptance_rate": 0.2}
    (codes,) = draw(pipe, [1, 1], generator(), **options)
    assert torch.equal(codes[mask], known[mask])
    stored = options | {"known_codes": known.to(torch.uint16)}  # as in files
    assert torch.equal(draw(pipe, torch.tensor([1, 1], dtype=torch.uint8), generator(), **stored)[0], codes)
    with pytest.raises(ValueError, match=r"class_labels must be in \[0, 3\), got 3"):  # of no class
        draw(pipe, [1, 3], generator(), acceptance_rate=0.2)
    with pytest.raises(ValueError, match=r"known_codes must have a row for each of 4 samples, got \(2, 4, 4\)"):
        draw(pipe, [1, 1], generator(), num_images_per_prompt=2, **options)


def test_pictures_of_texts_are_chosen_by_their_class():
    torch.manual_seed(0)
    pipe = judged(test_text_to_image.build(num_classes=3, class_dropout_prob=0.1))
    options = {"acceptance_rate": 0.3, "num_inference_steps": 2, "output_type": "codes"}
    sources = [generator(seed) for seed in range(2)]
    kept = pipe(["the red dog", "a cat"], class_labels=[0, 2], generator=sources, **options).images
    assert torch.equal(kept[1:], pipe("a cat", class_labels=2, generator=[generator(1)], **options).images)
    seeds = torch.randint(2**63 - 1, (4,), generator=generator(1)).tolist()
    each = [pipe("a cat", class_labels=2, generator=[generator(seed)], **options | {"acceptance_rate": 1}).images
            for seed in seeds]  # fmt: skip
    pipe.judge.eval()
    likings = [pipe.sample_judge.log_probs(pipe.autoencoder.detokenize(one), "cpu")[0, 2] for one in each]
    assert torch.equal(kept[1:], each[torch.stack(likings).argmax()])


def test_classes_are_matched_by_their_names_where_both_sides_have_them():
    pipe = test_pipelines.build()
    expected = draw(judged(pipe), [0, 1, 2], generator(), acceptance_rate=0.2)
    assert same(draw(judged(pipe, ["cat", "ant", "bee"]), [0, 1, 2], generator(), acceptance_rate=0.2), expected)
    judge, processor = resnet(num_labels=3)  # LABEL_0 and so on are no names
    assert VQPipeline(pipe.autoencoder, pipe.prior, NAMES, judge, processor).sample_judge.places.tolist() == [0, 1, 2]


def test_a_pipeline_is_saved_with_its_judge_and_loads_by_every_way(tmp_path, capsys):
    pipe = test_pipelines.build()
    pipe.save_pretrained(tmp_path / "plain")
    assert not [name for name in json.loads((tmp_path / "plain/model_index.json").read_text()) if "judge" in name]
    judge, processor = resnet(num_labels=3)
    pipe = VQPipeline(**{**pipe.components, "judge": judge, "judge_processor": processor}, class_names=NAMES)
    request = {"class_labels": [0, 2], "acceptance_rate": 0.25}
    pipe.set_progress_bar_config(disable=True)
    expected = draw(pipe, generator=generator(), **request)
    pipe.save_pretrained(tmp_path / "judged")
    with no_complaints():
        loaded = VQPipeline.from_pretrained(tmp_path / "judged")
    stock = DiffusionPipeline.from_pretrained(tmp_path / "judged", trust_remote_code=True)
    for other in (loaded, stock):
        assert type(other.judge) is ResNetForImageClassification
        assert same(draw(other, generator=generator(), **request), expected)
    assert read_folder(tmp_path / "judged").others["judge"] == "ResNetForImageClassification"

    for part in (judge, processor):
        part.save_pretrained(tmp_path / "judge")
    pictures, words = [], ["--num", "2", "--acceptance_rate", "0.25", "--batch_size", "7", "--quiet"]
    for folder, more in {"judged": [], "plain": ["--judge", str(tmp_path / "judge")]}.items():
        output = tmp_path / f"{folder}.png"
        assert hf_vq_cli.main(["sample", str(tmp_path / folder), str(output), *words, *more]) == 0
        pictures.append(Image.open(output).tobytes())
    assert pictures[0] == pictures[1]
    ResNetModel(judge.config).save_pretrained(tmp_path / "headless")
    processor.save_pretrained(tmp_path / "headless")
    for more, message in {
        ("--acceptance_rate", "0.5"): "acceptance_rate=0.5 needs a judge: give --judge",
        ("--judge", f"{tmp_path}/judge"): "/judge' given, but acceptance_rate=1 keeps all",
        ("--judge", f"{tmp_path}/plain/prior", "--acceptance_rate", "0.5"): "is no classifier with an image processor",
        ("--judge", f"{tmp_path}/headless", "--acceptance_rate", "0.5"): "headless lacks classifier",
    }.items():
        assert hf_vq_cli.main(["sample", str(tmp_path / "plain"), str(tmp_path / "none.png"), *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 4}, "judge knows 4 classes, but the prior has 3"),
        ({"id2label": dict(enumerate(["ant", "bee", "dog"]))}, "must know the class 'cat' once.*dog"),
        ({"id2label": dict(enumerate(["ant", "cat", "cat"]))}, "must know the class 'bee' once"),
        ({"num_labels": 3, "num_channels": 2}, "pictures of 2 channels, but samples have 1"),
    ],
)
def test_a_judge_of_something_else_is_refused(options, message):
    pipe = test_pipelines.build()
    judge, processor = resnet(num_labels=3)
    judge.config = ResNetConfig(**{"num_channels": 1, **options})
    with pytest.raises(ValueError, match=message):
        VQPipeline(pipe.autoencoder, pipe.prior, NAMES, judge, processor)


def test_a_judge_without_a_task_is_refused():
    judge, processor = resnet(num_labels=3)
    pipe = test_pipelines.build()
    with pytest.raises(ValueError, match=r"acceptance_rate=0\.5 needs a judge, but this pipeline has none"):
        pipe(class_labels=0, acceptance_rate=0.5)
    with pytest.raises(ValueError, match="judge_processor is missing"):
        VQPipeline(pipe.autoencoder, pipe.prior, NAMES, judge)
    plain = test_pipelines.build(classes=0)
    with pytest.raises(ValueError, match=r"judge.*ResNet.*the prior has no classes"):
        VQPipeline(plain.autoencoder, plain.prior, None, judge, processor)
    signals = contracts.signals(3)
    with pytest.raises(ValueError, match="judge given, but SignalCodec is no autoencoder of images"):
        VQPipeline(signals.autoencoder, signals.prior, NAMES, judge, processor)
    with pytest.raises(ValueError, match="acceptance_rate must be a number above 0 and at most 1, got 0"):
        judged(pipe)(class_labels=0, acceptance_rate=0)
    with pytest.raises(ValueError, match=r"acceptance_rate=1e-09 asks for \d+ candidates, too many"):
        pipe(class_labels=0, acceptance_rate=1e-9)
    pipe.judge.weights.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="judge, a LinearJudge, gives NaN"):
        pipe(class_labels=0, acceptance_rate=0.5)
    pipe.judge = ResNetModel(
        ResNetConfig(num_channels=1, num_labels=3, embedding_size=4, hidden_sizes=[8], depths=[1])
    )
    pipe.judge_processor = processor
    with pytest.raises(ValueError, match=r"judge, a ResNetModel, must give logits \(2, 3\), got none"):
        pipe(class_labels=0, acceptance_rate=0.5)
