"""Codes as tokens of a language model of transformers."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AddedToken

from hf_vq.arguments import checked
from hf_vq.data.identity import makes_codes, tokenizer_identity
from hf_vq.data.tokenizer import Tokenizer
from hf_vq.tokens.flat import Order, flatten_codes, unflatten_codes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEY = "hf_vq_codes"  # in the config of the tokenizer, and of the model
MOST_TOKENS = 2**20
BEGIN, END, CODE = "<|begin_codes|>", "<|end_codes|>", "<|code_{}|>"


class CodeVocabulary:
    """The tokens of a tokenizer that are the codes of an autoencoder, in one block of ids.

    A sample is `<|begin_codes|>`, its codes in the order of `flatten_codes`, `<|end_codes|>`. Every level of every
    grid has tokens of its own, `<|code_0|>` onward. `save_pretrained` of the tokenizer keeps all of it.

    Args:
        tokenizer: to which `add_code_tokens` has added them, loaded or not.

    Attributes:
        codebook_sizes: number of codes of every grid, coarse to fine.
        num_levels: codes at a position.
        order: of levels, see `flatten_codes`.
        begin_id, end_id: ids of the markers.
        first_id: of the first code.
        num_codes: how many tokens are codes.

    Raises:
        ValueError: a tokenizer without code tokens, or with some of them.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        facts = tokenizer.init_kwargs.get(KEY)
        if facts is None:
            raise ValueError("tokenizer has no tokens of codes: add_code_tokens adds them")
        self.tokenizer = tokenizer
        self.codebook_sizes, self.num_levels = tuple(facts["codebook_sizes"]), facts["num_levels"]
        self.hierarchical, self.order = facts["hierarchical"], facts["order"]
        self.num_codes = self.num_levels * sum(self.codebook_sizes)
        names = (BEGIN, END, CODE.format(0), CODE.format(self.num_codes - 1))
        found = cast(list[int], tokenizer.convert_tokens_to_ids(list(names)))
        self.begin_id, self.end_id, self.first_id, _ = found
        if found != [self.begin_id, self.begin_id + 1, self.begin_id + 2, self.begin_id + 1 + self.num_codes]:
            raise ValueError(f"tokenizer has {', '.join(names)} as {found}: tokens were added or taken between them")

    def codes_to_ids(self, codes: Any) -> torch.Tensor:
        """Codes as token ids, between the markers.

        Args:
            codes: as `tokenize` of the autoencoder gives them.

        Returns:
            (batch, codes of a sample + 2) int64.

        Raises:
            ValueError: codes that are not those of this autoencoder, see `flatten_codes`.
        """
        ids = flatten_codes(codes, self._sizes(), **self._layout())
        marker = torch.ones_like(ids[:, :1])
        return torch.cat([self.begin_id * marker, ids, self.end_id * marker], dim=1)

    def ids_to_codes(self, ids: Any, code_shape: Sequence[Any]) -> Any:
        """The codes among token ids, as `detokenize` of the autoencoder takes them.

        Args:
            ids: (batch, length) integers or a list of lists. Of a row with a begin marker what is between it and the
                end marker, or the end of the row, counts; without one all of it does.
            code_shape: of a sample, as `code_shape` of the autoencoder gives it.

        Returns:
            int64 codes, of a hierarchy a tuple of them.

        Raises:
            ValueError: two begin markers in a row, too few or too many codes, or a token that is no code.
        """
        rows = ids.tolist() if isinstance(ids, torch.Tensor) else [list(row) for row in ids]
        if not all(isinstance(row, list) for row in rows):
            raise ValueError(f"ids must be (batch, length), got shape {tuple(ids.shape)}")
        rows = [self._between(number, row) for number, row in enumerate(rows)]
        if len({len(row) for row in rows}) > 1:
            raise ValueError(
                f"ids must hold as many codes in every row, got {', '.join(str(len(row)) for row in rows)}"
            )
        found = torch.tensor(rows, dtype=torch.int64).view(len(rows), -1)
        return unflatten_codes(found, code_shape, self._sizes(), **self._layout())

    def codes_to_text(self, codes: Any) -> list[str]:
        """Codes as text, one for each sample, which the tokenizer reads as `codes_to_ids`."""
        return ["".join(self.tokenizer.convert_ids_to_tokens(row)) for row in self.codes_to_ids(codes).tolist()]

    def text_to_codes(self, text: str | Sequence[str], code_shape: Sequence[Any]) -> Any:
        """The codes in texts, see `ids_to_codes`."""
        texts = [text] if isinstance(text, str) else list(text)
        return self.ids_to_codes(self.tokenizer(texts, add_special_tokens=False)["input_ids"], code_shape)

    def only_codes(self, code_shape: Sequence[Any]) -> Callable[[int, torch.Tensor], list[int]]:
        """A `prefix_allowed_tokens_fn` for `generate`: a begin marker, the codes of a sample, an end marker.

        Args:
            code_shape: of the sample.

        Returns:
            A function of the number of a row and its ids so far. After the end marker it allows the tokenizer's end of
            text, or more end markers where there is none.
        """
        shapes = tuple(code_shape) if self.hierarchical else (tuple(code_shape),)
        lowest = tuple(torch.zeros(1, *shape, dtype=torch.int64) for shape in shapes)  # a sample of the first codes
        firsts = flatten_codes(lowest, self._sizes(), **self._layout())[0].tolist()
        sizes = [size for grid, size in zip(lowest, self.codebook_sizes, strict=True) for _ in range(grid.numel())]
        allowed = {first: list(range(first, first + size)) for first, size in zip(firsts, sizes, strict=True)}
        steps = [*(allowed[first] for first in firsts), [self.end_id]]
        eos = self.tokenizer.eos_token_id
        last = [self.end_id if eos is None else eos]

        def allow(row: int, ids: torch.Tensor) -> list[int]:
            begins = (ids == self.begin_id).nonzero()
            if not len(begins):
                return [self.begin_id]
            step = len(ids) - 1 - int(begins[-1])
            return steps[step] if step < len(steps) else last

        return allow

    def _between(self, number, row):
        count = row.count(self.begin_id)
        if count > 1:
            raise ValueError(f"ids[{number}] must have one {BEGIN}, got {count}")
        row = row[row.index(self.begin_id) + 1 :] if count else row
        return row[: row.index(self.end_id)] if self.end_id in row else row

    def _sizes(self):
        return list(self.codebook_sizes)

    def _layout(self):
        return {"num_levels": self.num_levels, "order": self.order, "offset": self.first_id}


@checked
def add_code_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    model: "PreTrainedModel",
    autoencoder: Tokenizer,
    order: Order = "positions",
) -> CodeVocabulary:
    """Give a tokenizer and a language model a token for each code of an autoencoder, and two markers.

    New rows of the embedding are drawn with the mean and the spread of the old ones, channel by channel, so that codes
    differ from the first step on. New rows of a head of its own are the mean of the old ones: before training no code
    is likelier than the average word. (`resize_token_embeddings` of transformers takes the mean for both; for that it
    computes a covariance, which for a wide model takes minutes on a CPU.) Called again with the same three, also once
    they were saved and loaded, it changes nothing.

    Args:
        tokenizer: of transformers; changed in place.
        model: with as many rows of embeddings as the tokenizer has tokens, or more; changed in place.
        autoencoder: of any number of grids and levels.
        order: of levels, see `flatten_codes`.

    Returns:
        `CodeVocabulary`; `CodeVocabulary(tokenizer)` gives it again.

    Raises:
        ValueError: no autoencoder of ours, or a tokenizer or model with the tokens of another one.
    """
    facts, names = _describe(autoencoder, order), None
    told, known = tokenizer.init_kwargs.get(KEY), getattr(model.config, KEY, None)
    if told is None:
        if known is not None:
            raise ValueError(
                "model has tokens of codes, tokenizer has none: load the one that was saved with the model"
            )
        identity = tokenizer_identity(autoencoder)
        told = {**facts, **{name: identity[name] for name in ("codes_sha256", "rounded_sha256")}}
        names = _new_names(tokenizer, facts)
    for name, value in facts.items():
        if told[name] != value:
            raise ValueError(f"tokenizer has tokens of codes with {name}={told[name]!r}, not {value!r}")
    if makes_codes(autoencoder, told["codes_sha256"], told["rounded_sha256"]) is False:
        raise ValueError(
            f"tokenizer has the codes of another autoencoder, whose codes_sha256 is {told['codes_sha256']}"
        )
    if known not in (None, told["codes_sha256"]):
        raise ValueError(f"model has the codes of another autoencoder, whose codes_sha256 is {known}")
    used = len(tokenizer) if names is not None else CodeVocabulary(tokenizer).begin_id
    rows = cast(torch.nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    if rows < used:
        raise ValueError(f"model has embeddings of {rows} tokens, tokenizer has {used} that are no codes")
    if names is not None:
        tokens = [AddedToken(name, normalized=False, special=True) for name in names]
        tokenizer.add_tokens(cast(Any, tokens), special_tokens=True)
        tokenizer.init_kwargs[KEY] = told
    vocabulary = CodeVocabulary(tokenizer)
    if known is None:
        _give_rows(model, vocabulary)
        setattr(model.config, KEY, told["codes_sha256"])
    return vocabulary


def _describe(autoencoder, order):
    """What a tokenizer keeps of an autoencoder, besides which one it is."""
    if getattr(autoencoder, "registry_kind", None) != "autoencoder":
        raise ValueError(f"autoencoder must be an autoencoder of hf_vq, got {type(autoencoder).__name__}")
    facts = {
        "codebook_sizes": list(autoencoder.codebook_sizes),
        "num_levels": autoencoder.quantizers[0].num_levels,
        "hierarchical": autoencoder.hierarchical,
        "order": order,
    }
    count = facts["num_levels"] * sum(facts["codebook_sizes"])
    if count > MOST_TOKENS:
        raise ValueError(f"autoencoder has {count:,} codes: a vocabulary takes {MOST_TOKENS:,} at the most")
    return facts


def _new_names(tokenizer, facts):
    """The tokens to add, none of which is there."""
    count = facts["num_levels"] * sum(facts["codebook_sizes"])
    names = [BEGIN, END, *map(CODE.format, range(count))]
    for name in sorted(tokenizer.get_vocab().keys() & set(names)):
        raise ValueError(f"tokenizer has a token {name!r} of its own: a code would mean two things")
    return names


@torch.no_grad()
def _give_rows(model, vocabulary):
    """Rows of the embedding, and of the head, for all tokens of a vocabulary; see `add_code_tokens`."""
    old, needed = vocabulary.begin_id, vocabulary.first_id + vocabulary.num_codes
    if len(model.get_input_embeddings().weight) < needed:
        model.resize_token_embeddings(needed, mean_resizing=False)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    variance, mean = torch.var_mean(embedding.weight[:old].float(), dim=0, correction=0)
    new = embedding.weight[old:needed]
    new.copy_(mean + variance.sqrt() * torch.randn(new.shape, device=new.device))
    if head is not None and head.weight is not embedding.weight:
        head.weight[old:needed] = head.weight[:old].float().mean(dim=0).to(head.weight.dtype)
    if getattr(head, "bias", None) is not None:
        head.bias[old:needed] = head.bias[:old].mean()
