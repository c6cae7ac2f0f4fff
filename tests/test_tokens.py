"""Codes as the tokens of a language model: flattened and back, in its vocabulary, trained by stock Trainer."""

import itertools
import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import hf_vq
from hf_vq import CodeVocabulary, add_code_tokens, flatten_codes, unflatten_codes
from hf_vq.data.images import load_images

from .conftest import no_complaints
from .test_transformer_prior import make_codes as codes_and_conditions
from .test_transformer_prior import make_prior

SHAPES = {  # code_shape, codebook_size, num_levels
    "sound": ((5,), 7, 1),
    "image": ((2, 3), 7, 1),
    "video": ((2, 3, 2), 7, 1),
    "levels of sound": ((3, 4), 7, 3),
    "levels of images": ((2, 2, 3), 7, 2),
    "hierarchy": (((1, 2), (2, 4)), (7, 5), 1),
    "hierarchy of levels": (((2, 1, 2), (2, 2, 4)), (7, 5), 2),
}


def make_codes(name, batch=3):
    shapes, sizes, _ = SHAPES[name]
    if isinstance(sizes, int):
        return torch.randint(sizes, (batch, *shapes))
    return tuple(torch.randint(size, (batch, *shape)) for shape, size in zip(shapes, sizes, strict=True))


def flatten_slowly(codes, sizes, levels, order, offset):
    """One sample's ids, code by code."""
    ids, start = [], offset
    for grid, size in zip(codes, sizes, strict=True):
        grid = grid if levels > 1 else grid[None]
        places = list(itertools.product(*(range(side) for side in grid.shape[1:])))
        pairs = [(level, place) for place in places for level in range(levels)]
        if order == "levels":
            pairs.sort(key=lambda pair: pair[0])
        ids += [start + level * size + int(grid[(level, *place)]) for level, place in pairs]
        start += levels * size
    return ids


@pytest.mark.parametrize("order", ["positions", "levels"])
@pytest.mark.parametrize("name", SHAPES)
def test_flattened_codes_are_in_the_order_of_the_page_and_come_back(name, order):
    shape, size, levels = SHAPES[name]
    codes = make_codes(name)
    grids, sizes = (codes, size) if isinstance(codes, tuple) else ((codes,), (size,))
    options = {"num_levels": levels, "order": order}
    ids = flatten_codes(codes, size, **options, offset=100)
    for row in range(3):
        assert ids[row].tolist() == flatten_slowly([grid[row] for grid in grids], sizes, levels, order, 100)
    found = unflatten_codes(ids.to(torch.int32), shape, size, **options, offset=100)
    assert isinstance(found, tuple) == isinstance(codes, tuple)
    torch.testing.assert_close(found, codes)
    shared = flatten_codes(codes, **options)  # ids that are codes
    assert shared.max() < max(sizes)
    torch.testing.assert_close(unflatten_codes(shared, shape, **options), codes)


def test_what_generate_gives_of_a_transformer_prior_becomes_codes():
    prior = make_prior("residual")
    given = codes_and_conditions(prior)[1]
    prompt = prior.make_prompt(**given)
    tokens = prior.generate(prompt, do_sample=False)
    codes = unflatten_codes(tokens[:, prompt.shape[1] :], prior.config.code_shape, num_levels=3)
    assert torch.equal(codes, prior.sample(**given, temperature=0))


@pytest.mark.parametrize(
    ("match", "call"),
    [
        (r"codes must be integers, got torch.float32", lambda: flatten_codes(torch.zeros(1, 2))),
        (r"codes must be in \[0, 4\), got 0 to 4", lambda: flatten_codes(torch.tensor([[0, 4]]), 4)),
        (r"codes must be in \[0, .*got -1 to 4", lambda: flatten_codes(torch.tensor([[-1, 4]]))),
        (r"codes must be \(batch, \*grid\), got shape \(3,\)", lambda: flatten_codes(torch.arange(3))),
        (r"codes must be \(batch, 2, \*grid\), got shape \(1, 3, 4\)",
         lambda: flatten_codes(torch.zeros(1, 3, 4, dtype=int), num_levels=2)),
        (r"codes\[1\] has a batch of 1, codes\[0\] has 2",
         lambda: flatten_codes((torch.zeros(2, 1, dtype=int), torch.zeros(1, 4, dtype=int)))),
        (r"codebook_size must be one number or 1, one for each grid, got \[4, 4\]",
         lambda: flatten_codes(torch.zeros(1, 2, dtype=int), [4, 4])),
        (r"codebook_size=.* int64 holds no",
         lambda: flatten_codes(torch.zeros(1, 2, 2, dtype=int), 2**62, num_levels=2, offset=1)),
        (r"order must be one of \['positions', 'levels'\], got 'rows'",
         lambda: flatten_codes(torch.zeros(1, 2, dtype=int), order="rows")),
        (r"offset must be an integer at least 0, got -1",
         lambda: flatten_codes(torch.zeros(1, 2, dtype=int), offset=-1)),
        (r"ids must be \(batch, 6\) for code_shape=\(2, 3\), got shape \(1, 7\)",
         lambda: unflatten_codes(torch.zeros(1, 7, dtype=int), (2, 3))),
        (r"ids\[1, 0\] must be in \[10, 14\), those of its grid, got 14",
         lambda: unflatten_codes(torch.tensor([[13, 10], [14, 10]]), (2,), 4, offset=10)),
        (r"ids\[0, 1\] must be in \[4, 8\), those of its level 1, got 3",
         lambda: unflatten_codes(torch.tensor([[0, 3]]), (2, 1), 4, num_levels=2)),
        (r"code_shape must be sizes of the 2 levels, then the grid, got \(3, 4\)",
         lambda: unflatten_codes(torch.zeros(1, 12, dtype=int), (3, 4), num_levels=2)),
        (r"code_shape must be sizes of the grid, got \(0, 4\)",
         lambda: unflatten_codes(torch.zeros(1, 0, dtype=int), (0, 4))),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(match, call):
    with pytest.raises(ValueError, match=match):
        call()


DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SMALL = {"hidden_channels": 8, "codebook_size": 8, "codebook_dim": 4}


def make_autoencoder(kind="plain", seed=0, **options):
    torch.manual_seed(seed)
    if kind == "hierarchy":
        model = hf_vq.VQVAE2(1, 8, codebook_size=8, codebook_dim=4, strides=(2, 2))
    else:
        levels = {"quantizer_type": "residual", "quantizer_config": {"num_levels": 3}} if kind == "levels" else {}
        model = hf_vq.VQVAE(1, stage_channels=(8,), num_residual_layers=0, **{**SMALL, **levels, **options})
    model.initialize_codebook(torch.rand(64, 1, 8, 8) * 2 - 1)
    return model.eval()


@pytest.mark.parametrize("kind", ["plain", "levels", "hierarchy"])
def test_detokenize_says_that_codes_are_flat(kind):
    model = make_autoencoder(kind)
    codes = model.tokenize(torch.rand(2, 1, 8, 8) * 2 - 1)
    ids = flatten_codes(codes, num_levels=model.num_levels)
    for flat in (ids, ids[0]):
        with pytest.raises(ValueError, match=r"codes must be .*got .*hf_vq\.unflatten_codes"):
            model.detokenize(flat)
    if kind == "plain":
        dense = make_autoencoder(reconstruction_loss="softmax")
        with pytest.raises(ValueError, match=r"codes must be .*got .*hf_vq\.unflatten_codes"):
            dense.reconstruction_log_prob(torch.rand(2, 1, 8, 8), ids)
    back = unflatten_codes(ids, model.code_shape((1, 8, 8)), num_levels=model.num_levels)
    assert torch.equal(model.detokenize(back), model.detokenize(codes))


def make_tokenizer():
    """Bytes and a few pairs of them, learned from captions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([caption(digit) for digit in range(10)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def make_llama(rows, hidden_size=32, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden_size, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, **{**sizes, **options}))


def caption(digit):
    return f"a picture of the digit {DIGITS[digit]}"


@pytest.mark.parametrize("kind", ["plain", "levels", "hierarchy"])
def test_a_vocabulary_of_codes_is_saved_with_its_tokenizer(kind, tmp_path):
    autoencoder, tokenizer = make_autoencoder(kind), make_tokenizer()
    before, model = len(tokenizer), make_llama(len(tokenizer))
    vocabulary = add_code_tokens(tokenizer, model, autoencoder)
    sample = torch.rand(2, 1, 8, 8) * 2 - 1
    codes, shape = autoencoder.tokenize(sample), autoencoder.code_shape((1, 8, 8))
    ids, texts = vocabulary.codes_to_ids(codes), vocabulary.codes_to_text(codes)
    assert len(tokenizer) == before + 2 + vocabulary.num_codes == len(model.get_input_embeddings().weight)
    assert vocabulary.num_codes == {"plain": 8, "levels": 24, "hierarchy": 16}[kind]
    assert (ids[:, 0].unique().tolist(), ids[:, -1].unique().tolist()) == ([vocabulary.begin_id], [vocabulary.end_id])
    assert tokenizer(texts)["input_ids"] == ids.tolist()
    assert tokenizer.decode(tokenizer(f"a digit{texts[0]}!")["input_ids"], skip_special_tokens=True) == "a digit!"

    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    loaded, again = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    for found in (CodeVocabulary(loaded), add_code_tokens(loaded, again, autoencoder)):
        assert torch.equal(found.codes_to_ids(codes), ids)
        torch.testing.assert_close(found.text_to_codes(texts, shape), codes)
        padded = [[5, 6, *row, 7] for row in ids.tolist()]  # a caption before, something after
        for given in (ids, padded, ids[:, 1:-1], ids[:, :-1]):
            torch.testing.assert_close(found.ids_to_codes(given, shape), codes)
    assert len(loaded) == len(tokenizer)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)  # the second call changed nothing


def test_large_codebooks_take_seconds(tmp_path):
    autoencoder, tokenizer = make_autoencoder(codebook_size=2**14, quantizer_type="vector"), make_tokenizer()
    vocabulary = add_code_tokens(tokenizer, make_llama(len(tokenizer), 8), autoencoder)
    codes = torch.arange(2**14).view(1, 128, 128)
    ids = vocabulary.codes_to_ids(codes)
    tokenizer.save_pretrained(tmp_path)
    loaded = CodeVocabulary(AutoTokenizer.from_pretrained(tmp_path))
    assert torch.equal(loaded.codes_to_ids(codes), ids)
    assert torch.equal(loaded.text_to_codes(loaded.codes_to_text(codes), (128, 128)), codes)


@pytest.mark.parametrize("spare", [0, 100])  # rows that the model has and the tokenizer does not use
@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_start_among_the_old_ones_which_stay(tied, spare):
    tokenizer = make_tokenizer()
    old = len(tokenizer)
    model = make_llama(old + spare, tie_word_embeddings=tied)
    with torch.no_grad():
        model.get_input_embeddings().weight[:old].mul_(torch.rand(32) * 5).add_(torch.randn(32))
        words = torch.arange(20)[None]
        before = model(words).logits[..., :old]
        vocabulary = add_code_tokens(tokenizer, model, make_autoencoder(codebook_size=256))
        after = model(words).logits
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (head is embedding) == tied
    assert len(embedding) == len(head) == model.config.vocab_size == max(old + spare, len(tokenizer))
    torch.testing.assert_close(after[..., :old], before, rtol=0, atol=1e-6)
    used, new = embedding[:old], embedding[old : len(tokenizer)]
    assert len(new.unique(dim=0)) == vocabulary.num_codes + 2
    torch.testing.assert_close(new.std(0), used.std(0), rtol=0.2, atol=0)
    assert ((new.mean(0) - used.mean(0)).abs() < 0.3 * used.std(0)).all()
    if not tied:
        torch.testing.assert_close(
            after[..., old : len(tokenizer)], before.mean(-1, keepdim=True).expand(-1, -1, len(new))
        )


def test_tokens_of_another_autoencoder_are_refused_before_anything_changes():
    tokenizer, autoencoder = make_tokenizer(), make_autoencoder()
    old = len(tokenizer)
    model, fresh = make_llama(old), make_llama(old)
    for bad, words in (
        ((tokenizer, model, torch.nn.Linear(1, 1)), "autoencoder must be .* got Linear"),
        ((tokenizer, make_llama(9), autoencoder), f"model has embeddings of 9 tokens, tokenizer has {old}"),
    ):
        with pytest.raises(ValueError, match=words):
            add_code_tokens(*bad)
    assert len(tokenizer) == old
    with pytest.raises(ValueError, match="tokenizer has no tokens of codes: add_code_tokens"):
        CodeVocabulary(tokenizer)
    add_code_tokens(tokenizer, model, autoencoder)
    size, rows = len(tokenizer), model.get_input_embeddings().weight.clone()
    for bad, words in (
        ((tokenizer, model, make_autoencoder("levels")), "tokenizer has .* num_levels=1, not 3"),
        ((tokenizer, model, make_autoencoder(seed=1)), "tokenizer has the codes of another autoencoder"),
        ((make_tokenizer(), model, autoencoder), "model has tokens of codes, tokenizer has none"),
    ):
        with pytest.raises(ValueError, match=words):
            add_code_tokens(*bad)
    other = make_tokenizer()
    add_code_tokens(other, fresh, make_autoencoder(seed=1))
    with pytest.raises(ValueError, match="model has the codes of another autoencoder"):
        add_code_tokens(tokenizer, fresh, autoencoder)
    taken = make_tokenizer()
    taken.add_tokens(["<|code_3|>"])
    with pytest.raises(ValueError, match=re.escape("tokenizer has a token '<|code_3|>' of its own")):
        add_code_tokens(taken, make_llama(old), autoencoder)
    assert len(tokenizer) == size
    assert torch.equal(model.get_input_embeddings().weight, rows)
    vocabulary, shape = CodeVocabulary(tokenizer), (4, 4)
    begin, end, first = vocabulary.begin_id, vocabulary.end_id, vocabulary.first_id
    for ids, words in (
        ([[begin, begin]], "ids.0. must have one <.begin_codes.>, got 2"),
        ([[begin, *[first] * 15, end]], r"ids must be \(batch, 16\)"),
        ([[first] * 16, [first] * 15], "ids must hold as many codes in every row, got 16, 15"),
        ([[begin, *[first] * 15, 5]], r"ids\[0, 15\] must be in"),
        (torch.tensor([first] * 16), r"ids must be \(batch, length\), got shape \(16,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            vocabulary.ids_to_codes(ids, shape)


class Captioned(torch.utils.data.Dataset):
    """A caption, then the codes of a digit."""

    def __init__(self, tokenizer, vocabulary, autoencoder, count=256):
        digits = load_images("digits", split="train")
        items = [digits[index] for index in range(count)]
        ids = vocabulary.codes_to_ids(autoencoder.tokenize(torch.stack([item["sample"] for item in items])))
        captions = [caption(int(item["class_labels"])) for item in items]
        words = tokenizer(captions, padding=True, padding_side="left", return_tensors="pt")
        self.ids = torch.cat([words["input_ids"], ids], dim=1)
        self.mask = torch.cat([words["attention_mask"], torch.ones_like(ids)], dim=1)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        ids, mask = self.ids[index], self.mask[index]
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def test_a_stock_llama_learns_captions_and_codes_and_draws_pictures(tmp_path):
    autoencoder, tokenizer = make_autoencoder(), make_tokenizer()
    model = make_llama(len(tokenizer))
    vocabulary = add_code_tokens(tokenizer, model, autoencoder)
    data = Captioned(tokenizer, vocabulary, autoencoder)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=80, learning_rate=2e-2, per_device_train_batch_size=32, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=10,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] > 3
    assert losses[-1] < 1.2  # with captions known by heart and codes drawn evenly it is 1.25
    trainer.save_model(str(tmp_path))

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    vocabulary, shape = CodeVocabulary(tokenizer), autoencoder.code_shape((1, 8, 8))
    prompt = tokenizer([caption(3), caption(0)], padding=True, padding_side="left", return_tensors="pt")
    for options in ({}, {"prefix_allowed_tokens_fn": vocabulary.only_codes(shape), "do_sample": True}):
        with no_complaints():
            ids = model.generate(**prompt, max_new_tokens=18, eos_token_id=vocabulary.end_id, **options)
        images = autoencoder.detokenize(vocabulary.ids_to_codes(ids, shape))
        assert images.shape == (2, 1, 8, 8)
        assert not torch.equal(images[0], images[1])
