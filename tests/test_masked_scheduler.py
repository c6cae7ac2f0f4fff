"""MaskedScheduler: stock AmusedScheduler's numbers, what that does wrong, and the loop that drives stock's network."""

import pytest
import torch
from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel

import hf_vq
from hf_vq import MaskedScheduler
from hf_vq.priors.masked_scheduler import decode_masked
from hf_vq.priors.sampling import draw_by_race, guide

from .conftest import FIXTURES, fixture, no_complaints

FOLDER = FIXTURES / "diffusers_amused_pipeline"
MASK, CODES = 47, 40


def logits_for(sample):
    """Logits in the order of axes that a sample wants."""
    batch_size, *grid = sample.shape
    return torch.randn(batch_size, CODES, *grid) if len(grid) > 1 else torch.randn(batch_size, *grid, CODES)


def partly_masked(shape):
    sample = torch.randint(CODES, shape)
    masked = torch.rand(shape) < 0.7
    masked.flatten(1)[:, 0] = True
    return sample.masked_fill(masked, MASK)


# Stock's scheduler


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 64), (2, 5)], ids=str)
def test_steps_are_those_of_stock(schedule, shape):
    for steps, temperature, ratio in ((1, (2, 0), 1.0), (5, (4.5, 0.0), 1.0), (7, 1.5, 0.6)):
        schedulers = AmusedScheduler(MASK, schedule), MaskedScheduler(MASK, schedule)
        for scheduler in schedulers:
            scheduler.set_timesteps(steps, temperature)
        assert torch.equal(*(scheduler.timesteps for scheduler in schedulers))
        sample = partly_masked(shape)
        for timestep in schedulers[0].timesteps:
            logits, ends = logits_for(sample), []
            for scheduler in schedulers:
                generator = torch.Generator().manual_seed(steps)
                step = scheduler.step(logits, timestep, sample, ratio, generator)
                noised = scheduler.add_noise(step.pred_original_sample, timestep, generator)
                ends.append((step.prev_sample, step.pred_original_sample, noised))
            assert all(map(torch.equal, *ends))
            sample = ends[0][0]
        assert (sample < CODES).all()


def test_configs_are_those_of_stock(tmp_path):
    with no_complaints():
        ours = MaskedScheduler.from_pretrained(FOLDER, subfolder="scheduler")
        ours.save_pretrained(tmp_path)
        stock = AmusedScheduler.from_pretrained(tmp_path)
    for scheduler in (ours, stock):
        assert (scheduler.config.mask_token_id, scheduler.config.masking_schedule) == (MASK, "cosine")
    assert hf_vq.MaskedScheduler.from_config(stock.config).config.mask_token_id == MASK


@torch.no_grad()
def test_our_loop_drives_stocks_network_to_stocks_image():
    tensors, meta = fixture("diffusers_amused_pipeline")
    pipe = AmusedPipeline.from_pretrained(FOLDER)
    network: UVit2DModel = pipe.transformer
    given = {name: tensors[f"in.{name}"] for name in ("encoder_hidden_states", "pooled_text_emb", "micro_conds")}
    logits = network(tensors["in.latents"], **given)
    torch.testing.assert_close(logits, tensors["out.transformer_logits"], atol=1e-5, rtol=1e-5)

    call, scheduler = meta["call"], MaskedScheduler.from_pretrained(FOLDER, subfolder="scheduler")
    scheduler.set_timesteps(call["num_inference_steps"], tuple(call["temperature"]))
    words = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    texts = [
        pipe.text_encoder(pipe.tokenizer(prompt, **words).input_ids, output_hidden_states=True)
        for prompt in (call["prompt"], [""] * 2)
    ]
    condition = {
        "pooled_text_emb": torch.cat([text.text_embeds for text in texts]),
        "encoder_hidden_states": torch.cat([text.hidden_states[-2] for text in texts]),
        "micro_conds": torch.tensor([[32.0, 32.0, 0.0, 0.0, 6.0]]).expand(4, -1),
    }
    seen = []

    def predict(codes):
        seen.append(codes)
        return guide(*network(codes.repeat(2, 1, 1), **condition).chunk(2), call["guidance_scale"])

    generator = torch.Generator().manual_seed(call["generator_seed"])
    codes = decode_masked(predict, torch.full((2, 8, 8), MASK), scheduler, generator)
    assert torch.equal(torch.stack([*seen[1:], codes]), tensors["out.trajectory"])
    assert torch.equal(codes, tensors["out.final_codes"])
    images = pipe.vqvae.decode(codes, force_not_quantize=True, shape=(2, 8, 8, 8)).sample.clip(0, 1)
    torch.testing.assert_close(images.movedim(1, -1), tensors["out.images"], atol=1e-5, rtol=0)


def test_stocks_pipeline_draws_the_same_image_with_our_scheduler():
    tensors, meta = fixture("diffusers_amused_pipeline")
    scheduler = MaskedScheduler.from_pretrained(FOLDER, subfolder="scheduler")
    pipe, call = AmusedPipeline.from_pretrained(FOLDER, scheduler=scheduler), meta["call"]
    pipe.set_progress_bar_config(disable=True)
    options = {name: call[name] for name in ("prompt", "num_inference_steps", "guidance_scale", "temperature")}
    images = pipe(**options, generator=torch.Generator().manual_seed(call["generator_seed"]), output_type="np").images
    torch.testing.assert_close(torch.from_numpy(images), tensors["out.images"], atol=1e-5, rtol=0)


def test_single_steps_are_those_of_the_fixture():
    tensors, meta = fixture("diffusers_amused_pipeline")
    test = meta["scheduler_test"]
    scheduler = MaskedScheduler.from_pretrained(FOLDER, subfolder="scheduler")
    scheduler.set_timesteps(test["num_inference_steps"], tuple(test["temperature"]))
    for timestep in test["timesteps"]:
        generator = torch.Generator().manual_seed(test["generator_seed"])
        step = scheduler.step(tensors["in.model_output"], timestep, tensors["in.latents"], generator=generator)
        assert torch.equal(step.prev_sample, tensors[f"out.sched_prev_t{timestep}"])
        assert torch.equal(step.pred_original_sample, tensors[f"out.sched_x0_t{timestep}"])


# What stock does otherwise


def test_equally_sure_codes_are_kept_by_the_schedule_and_every_row_by_its_own_count():
    scheduler = MaskedScheduler(MASK)
    scheduler.set_timesteps(8, (0, 0))
    sample = torch.full((4, 64), MASK)
    sample[1, 10:] = 3
    sample[2] = 5  # nothing left to do
    sample[3, 1:] = 7
    given, left = sample.clone(), []
    for timestep in scheduler.timesteps.tolist():
        share = (given == MASK).float().mean(1)
        sample = scheduler.step(torch.zeros(4, 64, CODES), timestep, sample, share).prev_sample
        left.append((sample == MASK).sum(1).tolist())
        assert torch.equal(sample[given != MASK], given[given != MASK])
    assert left == [[62, 9, 0, 1], [59, 8, 0, 1], [53, 7, 0, 1], [45, 6, 0, 1], [35, 5, 0, 1], [24, 3, 0, 1],
                    [12, 1, 0, 1], [0, 0, 0, 0]]  # fmt: skip


def test_a_code_without_probability_is_never_drawn():
    probabilities = torch.zeros(100_000, 50)
    probabilities[:, 17] = 1e-38
    assert (draw_by_race(probabilities, torch.Generator().manual_seed(0)) == 17).all()
    scheduler, logits = MaskedScheduler(MASK), torch.full((3, 64, CODES), -torch.inf)
    allowed = torch.rand(3, 64, CODES).argsort(-1) < 3
    scheduler.set_timesteps(6)
    codes = decode_masked(lambda codes: logits.masked_fill(allowed, 0.0), torch.full((3, 64), MASK), scheduler)
    assert allowed.gather(-1, codes[..., None]).all()


def test_an_item_with_its_own_generator_does_not_depend_on_the_batch():
    scheduler, logits = MaskedScheduler(MASK), torch.randn(3, 64, CODES)
    scheduler.set_timesteps(5)
    sample = partly_masked((3, 64))

    def decode(*rows):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return decode_masked(lambda codes: logits[[*rows]], sample[[*rows]], scheduler, generators)

    assert torch.equal(decode(0, 1, 2), torch.cat([decode(row) for row in range(3)]))


def test_bad_input_is_told_by_name():
    scheduler = MaskedScheduler(MASK)
    sample, logits = torch.full((2, 4, 4), MASK), torch.zeros(2, CODES, 4, 4)
    with pytest.raises(ValueError, match=r"call set_timesteps\(num_inference_steps\) first"):
        scheduler.step(logits, 0, sample)
    with pytest.raises(ValueError, match="num_inference_steps must be an integer between 1 and 1048576, got 0"):
        scheduler.set_timesteps(0)
    scheduler.set_timesteps(4)
    tight = MaskedScheduler(7)
    tight.set_timesteps(4)
    for match, call in (
        ("timestep must be one of the 4 of timesteps, 3 to 0, got 4", lambda: scheduler.step(logits, 4, sample)),
        (r"model_output must be \(batch, codes, \*grid\) for a sample of shape \(2, 4, 4\), got \(2, 16, 40\)",
         lambda: scheduler.step(logits.flatten(2).mT, 3, sample)),
        ("model_output must give a distribution of codes everywhere",
         lambda: scheduler.step(logits.index_fill(1, torch.tensor([3]), torch.nan), 3, sample)),
        ("mask_token_id=7 is one of the 40 codes of model_output", lambda: tight.step(logits, 3, sample)),
        (r"sample must hold codes in \[0, 40\) or the mask, 47, got 41",
         lambda: scheduler.step(logits, 3, sample - 6)),
        ("generator must be one, or one per item: got 3 for 2 items",
         lambda: scheduler.step(logits, 3, sample, generator=[torch.Generator()] * 3)),
        ("masking_schedule must be one of", lambda: MaskedScheduler(MASK, "square")),
        ("mask_token_id must be an integer at least 0, got -1", lambda: MaskedScheduler(-1)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            call()
