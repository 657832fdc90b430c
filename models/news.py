"""The news model: a title is all that is known of an item, and all of it is learned from what was clicked when shown.

Words or states of a title go through transformer layers and one additive pool: the title's vector (NRMS, Wu et al.
2019, with a transformer for its words). The newest read titles look at each other by multi-head self-attention, the
candidate asks them by target attention, with a null slot beside them for "nothing read speaks for it", and a small
network makes one logit of candidate and answer: the chance of a click. A candidate never sees its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.batches import Progress, no_progress
from models.config import Effort
from models.losses import MASKED
from models.titles import TitleBody, TitleReader, Titles

CONFIG, WEIGHTS = "news.json", "news.safetensors"
TITLES_AT_ONCE = 256
LISTS_AT_ONCE = 64
HEAD_WIDTH, SMALL_HEAD_WIDTH, SMALL = 64, 16, 256


@dataclass(frozen=True, slots=True)
class NewsConfig:
    """Everything that shapes a news model. `width`, `layers`: of the transformer that learns from words (a pretrained
    one brings its own width). `negatives`: how many unclicked titles a click is learned beside, drawn anew."""

    effort: Effort = "normal"
    seed: int = 1
    width: int = 64
    layers: int = 1
    history: int = 30
    hidden: int = 64
    dropout: float = 0.2
    negatives: int = 4
    batch: int = 64
    learning_rate: float = 1e-3
    layer_learning_rate: float = 5e-5
    """Of pretrained layers."""
    warmup_steps: int = 50
    epochs_max: int = 8
    steps_per_check: int = 300
    patience: int = 3
    held_out_max: int = 3000


@dataclass(frozen=True, slots=True)
class NewsLists:
    """R lists in the words of V titles: what was shown to somebody who had read something, and what was clicked.

    `history_rows` int32 [R, H], oldest first, 0 padding at the front; `rows` int32 [M], list n has
    `offsets[n]:offsets[n + 1]` (int64 [R + 1]); `clicked` bool [M]; `asked_s` int64 [R].
    """

    history_rows: NDArray[np.int32]
    rows: NDArray[np.int32]
    offsets: NDArray[np.int64]
    clicked: NDArray[np.bool_]
    asked_s: NDArray[np.int64]

    def __post_init__(self) -> None:
        assert len(self.history_rows) == len(self.asked_s) == len(self.offsets) - 1, "lists differ in number"
        assert len(self.rows) == len(self.clicked) == int(self.offsets[-1]), "shown and clicked differ in number"

    def __len__(self) -> int:
        return len(self.asked_s)

    def take(self, places: NDArray[np.int64]) -> NewsLists:
        """Some of them, in the order asked."""
        lengths = np.diff(self.offsets)[places]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.repeat(self.offsets[places] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return NewsLists(self.history_rows[places], self.rows[rows], offsets, self.clicked[rows], self.asked_s[places])

    def padded(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The shown rows [R, C], and which are real [R, C]; C is the longest list."""
        lengths = np.diff(self.offsets)
        steps = np.arange(int(lengths.max(initial=1)))
        real = steps[None, :] < lengths[:, None]
        rows = np.zeros(real.shape, dtype=np.int64)
        rows[real] = self.rows
        return rows, real


class NewsNetwork(nn.Module):
    """Titles into vectors, vectors into logits. `body` makes states [n, L, W] of tokens and their mask."""

    def __init__(self, body: TitleBody, width: int, config: NewsConfig) -> None:
        super().__init__()
        self.heads = heads_of(width)
        self.body = body
        self.pool = nn.Linear(width, width)
        self.asks = nn.Linear(width, 1, bias=False)
        self.order = nn.Parameter(torch.zeros(config.history, width))
        self.between = nn.MultiheadAttention(width, self.heads, config.dropout, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.null = nn.Parameter(torch.randn(2, self.heads, width // self.heads) * 0.1)
        self.dropout = nn.Dropout(config.dropout)
        self.said_to_logit = nn.Sequential(
            nn.Linear(3 * width + 3, config.hidden), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, 1)
        )
        self.straight = nn.Linear(3, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(()))
        for last in (*self.said_to_logit[-1].parameters(), *self.straight.parameters()):
            nn.init.zeros_(last)  # an untrained one says the same of everything

    def vectors(self, tokens: Tensor, real: Tensor) -> Tensor:
        """Titles by their tokens [n, L] or [n, L, W]: one vector each. [n, W]; 0 for a title without any."""
        states = self.body(tokens, real)
        asked = self.asks(torch.tanh(self.pool(states)))[..., 0].masked_fill(~real, MASKED)
        pooled = (asked.softmax(dim=1)[..., None] * states).sum(dim=1)
        some: Tensor = real.any(dim=1, keepdim=True).to(pooled.dtype)
        vectors: Tensor = pooled * some
        return vectors

    def forward(self, history: Tensor, real: Tensor, candidates: Tensor) -> Tensor:
        """Logits [B, C] of title vectors: history [B, H, W] (oldest first), real [B, H], candidates [B, C, W]."""
        read = self._read(history, real)
        said, null_share = self._attend(read, real, candidates)
        likeness = torch.cat([self._likeness(history, real, candidates), null_share], dim=-1)  # [B, C, 3]
        joined = torch.cat([candidates, said, candidates * said, likeness], dim=-1)
        logits = (self.said_to_logit(self.dropout(joined)) + self.straight(likeness))[..., 0]
        scaled: Tensor = logits * self.scale + self.shift
        return scaled

    def _read(self, history: Tensor, real: Tensor) -> Tensor:
        """What was read, each title in the light of the others. [B, H, W]"""
        if history.shape[1] == 0:
            return history
        events = history + self.order[-history.shape[1] :]
        padding = ~real
        padding[:, -1] = False  # somebody who has read nothing: nobody looks at what comes of it
        found, _ = self.between(events, events, events, key_padding_mask=padding, need_weights=False)
        normed: Tensor = self.norm(history + found)
        return normed

    def _attend(self, read: Tensor, real: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """What the read titles say of each candidate [B, C, W], and the null slot's share [B, C, 1]."""
        batch, length, width = read.shape
        null_key, null_value = self.null[:, :, None, :].expand(-1, -1, 1, -1)  # [heads, 1, head]
        query = self._split(self.query(candidates))
        key = torch.cat([null_key.expand(batch, -1, -1, -1), self._split(self.key(read))], dim=2)
        value = torch.cat([null_value.expand(batch, -1, -1, -1), self._split(self.value(read))], dim=2)
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # [B, heads, C, H + 1]
        shown = torch.cat([real.new_ones(batch, 1), real], dim=1)
        share = logits.masked_fill(~shown[:, None, None, :], float("-inf")).softmax(dim=-1)
        assert share.shape[-1] == length + 1, f"{share.shape} is not a share of {length} titles and the null slot"
        said = (share @ value).transpose(1, 2).reshape(batch, candidates.shape[1], width)
        return said, share[..., 0].mean(dim=1)[..., None]

    def _likeness(self, history: Tensor, real: Tensor, candidates: Tensor) -> Tensor:
        """The largest and the mean cosine of each candidate with what was read; 0 with nothing read. [B, C, 2]"""
        if history.shape[1] == 0:
            return candidates.new_zeros(*candidates.shape[:2], 2)
        unit = nn.functional.normalize
        cosine = unit(candidates, dim=-1) @ unit(history, dim=-1).transpose(-1, -2)
        some = real[:, None, :]
        highest = cosine.masked_fill(~some, -1.0).amax(dim=-1)
        counted = some.sum(dim=-1)
        mean = cosine.masked_fill(~some, 0.0).sum(dim=-1) / counted.clamp(min=1)
        return torch.stack([torch.where(counted > 0, highest, torch.zeros_like(highest)), mean], dim=-1)

    def _split(self, joined: Tensor) -> Tensor:
        return joined.view(*joined.shape[:2], self.heads, joined.shape[2] // self.heads).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class NewsModel:
    """A fitted news model. Titles become vectors once; lists are scored by the rows of these."""

    config: NewsConfig
    reader: TitleReader
    network: NewsNetwork
    width: int
    device: torch.device

    def vectors(self, titles: Titles, progress: Progress = no_progress) -> NDArray[np.float32]:
        """[V, W]; row 0 is zero."""
        self.network.eval()
        found = np.zeros((len(titles), self.width), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(titles), TITLES_AT_ONCE):
                rows = np.arange(start, min(start + TITLES_AT_ONCE, len(titles)))
                tokens, real = (torch.from_numpy(each).to(self.device) for each in titles.padded(rows))
                found[rows] = self.network.vectors(tokens, real).float().cpu().numpy()
                progress(len(rows) + start, len(titles), "titles into vectors")
        return found

    def scores(
        self, vectors: NDArray[np.float32], lists: NewsLists, progress: Progress = no_progress
    ) -> NDArray[np.float32]:
        """The logit of a click of every shown title, in the order of `lists.rows`. float32 [M]"""
        self.network.eval()
        found = np.zeros(len(lists.rows), dtype=np.float32)
        table = torch.from_numpy(vectors).to(self.device)
        by_length = np.argsort(np.diff(lists.offsets), kind="stable")  # lists of like length: little padding
        with torch.inference_mode():
            for start in range(0, len(lists), LISTS_AT_ONCE):
                some = by_length[start : start + LISTS_AT_ONCE]
                part = lists.take(some)
                rows, real = part.padded()
                history = torch.from_numpy(part.history_rows.astype(np.int64)).to(self.device)
                logits = self.network(table[history], history > 0, table[torch.from_numpy(rows).to(self.device)])
                places = lists.offsets[some][:, None] + np.arange(rows.shape[1])[None, :]
                found[places[real]] = logits.float().cpu().numpy()[real]
                progress(start + len(some), len(lists), "scoring by news")
        return found

    def save(self, folder: Path) -> None:
        """Weights as safetensors, everything else as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: each.contiguous() for name, each in self.network.state_dict().items()}, folder / WEIGHTS)
        said = {"config": asdict(self.config), "width": self.width, "reader": self.reader.said()}
        (folder / CONFIG).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path, opened: Opened, device: str = "cpu") -> NewsModel:
        """Read what `save` wrote; `opened` makes reader and body of what the reader said. Raises ValueError where a
        file is missing or does not fit."""
        try:
            said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            config, width = NewsConfig(**said["config"]), int(said["width"])
            reader, body = opened(said["reader"], config)
            network = NewsNetwork(body, width, config)
            network.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"news model {folder} cannot be read: {error}") from error
        where = torch.device(device)
        return NewsModel(config, reader, network.to(where).eval(), width, where)


Opened = Callable[[dict[str, Any], NewsConfig], tuple[TitleReader, TitleBody]]


def heads_of(width: int) -> int:
    """12 heads at 768, 6 at 384, 4 at 64: 64 wide where there is room, 16 otherwise; always a divisor of the width."""
    head = HEAD_WIDTH if width >= SMALL else SMALL_HEAD_WIDTH
    return next(heads for heads in range(max(1, width // head), 0, -1) if width % heads == 0)
