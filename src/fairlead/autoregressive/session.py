"""A language model under a guide while `model.generate` runs: one batched forward, one cache."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fairlead.autoregressive.calling import cache_name, positions
from fairlead.autoregressive.past import Past
from fairlead.autoregressive.prompts import Encoded
from fairlead.guidance.algebra import Guide
from fairlead.guidance.branch import COND, Branch, Predictions
from fairlead.guidance.context import Context, Plan, Run
from fairlead.guidance.domains import floored, normalised
from fairlead.guidance.guided import branches, finish, rows_to_evaluate, under_policies
from fairlead.parameters import nearest


class TokenContext(Context):
    """One token of a batch in which each prompt stands `repeat` times in a row."""

    repeat = 1

    def per_sample(self, values: Any) -> Tensor:
        """A weight a prompt, for all of its sequences."""
        if len(values) * self.repeat != self.batch:
            raise ValueError(
                f"weight: {len(values)} values were given for {self.batch // self.repeat} prompts"
            )
        device = None if self._like is None else self._like.device
        weight = torch.tensor(values, dtype=torch.float32, device=device)
        return weight.repeat_interleave(self.repeat).reshape(-1, *[1] * (self.ndim - 1))


class Session:
    """Branches of one generation: which rows they have, and how they are combined.

    Args:
        model: The language model that generates.
        guide: A guide that serves log-probabilities.
        prompts: By condition state, all of one length.
        models: Further language models by name.
        run: Memory of the generation.
    """

    def __init__(
        self,
        model: Any,
        guide: Guide,
        prompts: Mapping[str, Encoded],
        models: Mapping[str, Any],
        run: Run,
    ) -> None:
        guide.require("logprob")
        self.model, self.guide, self.prompts, self.run = model, guide, dict(prompts), run
        self.models = {"": model, **models}
        self.size = len(self.prompts["cond"].ids)
        self.width = self.prompts["cond"].ids.shape[1]
        self.decoder_only = not model.config.is_encoder_decoder
        self.check()
        self.last_use = self._lifetimes()
        self.active = {name: self._of(name) for name in self.models}
        self.caches: dict[str, Any] = {}
        self.encoded: dict[Branch, tuple[Tensor, Tensor]] = {}
        self.repeat = 1
        self.ids = self.prompts["cond"].ids
        self.fresh: int | None = None
        self.hidden = any(getattr(node, "of", "") == "hidden" for node in guide.nodes())
        self.before: Tensor | None = None
        self._expected = False

    def check(self) -> None:
        """Refuses what the guide asks for and was not given.

        Raises:
            ValueError: A state or a model is missing, a branch changes the inside of the network,
                or vocabularies differ.
        """
        vocabulary = self.model.config.vocab_size
        for branch in branches(self.guide):
            past = branch.point is not None and branch.point.past
            if (
                branch.perturbations
                or branch.transforms
                or (not past and (branch.point or branch.needs))
            ):
                raise ValueError(f"generate: the branch {branch.name!r} is not one of a prompt")
            if past and not self.decoder_only:
                raise ValueError(f"generate: the branch {branch.name!r} needs a decoder-only model")
            if branch.state not in self.prompts:
                raise ValueError(
                    f"generate: the guide asks for the condition state {branch.state!r}: pass "
                    f"states={{{branch.state!r}: prompts}}; {nearest(branch.state, self.prompts)}"
                )
            if branch.model not in self.models:
                raise ValueError(
                    f"generate: the guide asks for a model {branch.model!r}: pass "
                    f"models={{{branch.model!r}: model}}; {nearest(branch.model, self.models)}"
                )
            size = self.models[branch.model].config.vocab_size
            if size != vocabulary:
                raise ValueError(
                    f"generate: the vocabulary of model {branch.model!r} has {size} tokens, that "
                    f"of the generating one {vocabulary}; both must be the same"
                )

    def _lifetimes(self) -> dict[Branch, int]:
        """The last step at which each branch is wanted; policies may want any at any."""
        last: dict[Branch, int] = {}
        # a steady guide wants at the last step what it wants at any
        first = self.run.steps - 1 if self.guide.steady else 0
        for step in range(first, self.run.steps):
            dry = Run(self.run.seed, steps=self.run.steps, check=False, record=False)
            dry.step = step
            ctx = self._context(dry, self.size)
            for branch in rows_to_evaluate(ctx):
                last[branch] = self.run.steps if ctx.plan.policies else step
        return last

    def _context(self, run: Run, rows: int, like: Tensor | None = None) -> TokenContext:
        ctx = TokenContext(None, None, run, batch=rows, ndim=2, like=like)
        ctx.repeat = rows // self.size
        ctx.plan = Plan(self.guide.base(ctx))
        self.guide.plan(ctx, (), 1.0, ())
        return ctx

    def _of(self, name: str) -> list[Branch]:
        return [b for b in self.last_use if b.model == name and b.point is None]

    def expand(self, value: Tensor) -> Tensor:
        """A row a prompt as a row a sequence."""
        return value.repeat_interleave(self.repeat, 0)

    def stack(self, name: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask of all branches of a model, for sequences `(R, L)` of the generation."""
        if not self.decoder_only:
            stacked = ids.repeat(len(self.active[name]), 1)
            return stacked, torch.ones_like(stacked)
        tail = ids[:, self.width :]
        own = [self.prompts[b.state] for b in self.active[name]]
        rows = [torch.cat([self.expand(p.ids), tail], 1) for p in own]
        masks = [torch.cat([self.expand(p.mask), torch.ones_like(tail)], 1) for p in own]
        return torch.cat(rows), torch.cat(masks)

    def drop(self, name: str) -> None:
        """Takes the rows of branches that are never wanted again out of a model's cache."""
        before = self.active[name]
        after = [b for b in before if self.last_use[b] >= self.run.step]
        if len(after) == len(before) or not after:
            return
        cache, rows = self.caches.get(name), self.size * self.repeat
        if cache is not None:
            kept = [i for i, b in enumerate(before) if b in after]
            index = torch.cat([torch.arange(i * rows, (i + 1) * rows) for i in kept])
            cache.batch_select_indices(index.to(self.prompts["cond"].ids.device))
        self.active[name] = after

    def hold(self, name: str, cache: Any) -> None:
        """Makes beams reorder the rows of every branch alike."""
        if cache is None or self.caches.get(name) is cache:
            return
        self.caches[name] = cache

        def everywhere(index: Tensor) -> None:
            self.run.take(index)
            for held_name, held in self.caches.items():
                rows = len(index)
                shift = torch.arange(len(self.active[held_name]), device=index.device) * rows
                # the class's own: the instance's is this function
                type(held).reorder_cache(held, (index[None] + shift[:, None]).flatten())

        if name == "":
            cache.reorder_cache = everywhere

    def others(self, ids: Tensor, fresh: int | None) -> dict[Branch, Tensor]:
        """Log-probabilities of the branches of further models."""
        values: dict[Branch, Tensor] = {}
        for name in self.models:
            if not name or not self.active[name]:
                continue
            self.drop(name)
            stacked, mask = self.stack(name, ids)
            given: dict[str, Any] = {"attention_mask": mask, "use_cache": True}
            key = cache_name(self.models[name])
            if name in self.caches and fresh is not None:
                given[key] = self.caches[name]
            start = -fresh if name in self.caches and fresh is not None else 0
            given |= positions(self.models[name], mask, start)
            out = self.models[name](input_ids=stacked[:, start:], **given)
            self.hold(name, out.get(key))
            values |= self.split(name, out.logits)
        return values

    def tail(self, ids: Tensor) -> Tensor:
        """What was generated so far, without prompt or start token."""
        return ids[:, self.width if self.decoder_only else 1 :]

    def split(self, name: str, logits: Tensor) -> dict[Branch, Tensor]:
        """Log-probabilities of the last token by branch, `(R, V)` each."""
        rows = logits[:, -1].float().log_softmax(-1)
        parts = rows.chunk(len(self.active[name]))
        for part in parts:
            self.run.report.count(len(part), None)
        return dict(zip(self.active[name], parts, strict=True))

    def combine(self, values: dict[Branch, Tensor], tokens: Tensor) -> Tensor:
        """Guided log-probabilities `(R, V)`, behind the tokens generated so far."""
        like = next(iter(values.values()))
        ctx = self._context(self.run, len(like), like)
        ctx.tokens = tokens
        wanted = rows_to_evaluate(ctx)
        self.run.report.begin(self.run.step, 0, float(self.run.step), wanted, len(like))

        def kept(left: Iterable[Branch]) -> dict[Branch, Tensor]:
            found = {b: floored(values[b]) for b in left if b.point is None}
            return found | {b: self.moved(b, found, ctx) for b in left if b.point is not None}

        if ctx.plan.policies:
            predictions = under_policies(wanted, ctx, kept)
        else:
            predictions = Predictions(ctx.plan.base, kept(wanted))
        return normalised(finish(self.guide, predictions, ctx).denoise, "generate")

    def keep_hidden(self, states: Tensor) -> None:
        """Adds up the hidden states `(rows, n, H)` of the new tokens of `cond`."""
        part, (_, mask) = self._rows(COND), self.sequences(COND)
        new = states[part] * mask[:, -states.shape[1] :, None].to(states)
        self.before = new[:, :-1].sum(1) + self.run.recall("hidden", 0.0)
        self.run.remember("hidden", self.before + new[:, -1])

    def moved(self, branch: Branch, values: dict[Branch, Tensor], ctx: Context) -> Tensor:
        """Log-probabilities `(R, V)` of a branch that moves the keys and values of `cond`."""
        assert branch.point is not None
        ids, mask = self.sequences(COND)
        past = Past(self.model, self.caches.get(""), self._rows(COND), ids, mask, self.before)

        def look(moving: Tensor, hidden: bool = False) -> tuple[Tensor, Tensor | None]:
            for _ in range(1 + hidden):
                self.run.report.count(len(moving), None)
            return past.look(moving, hidden)

        if not past.moving.numel():  # a single token has nothing before it
            return values[COND]
        ctx.look = look
        return floored(look(branch.point(past.moving, Predictions(COND, values), ctx))[0])

    def sequences(self, branch: Branch) -> tuple[Tensor, Tensor]:
        """Ids and mask of one branch, for the sequences of the generation."""
        prompt, tail = self.prompts[branch.state], self.ids[:, self.width :]
        ids = torch.cat([self.expand(prompt.ids), tail], 1)
        return ids, torch.cat([self.expand(prompt.mask), torch.ones_like(tail)], 1)

    def _rows(self, branch: Branch) -> slice:
        """The rows of a branch in the batch of its model."""
        first = self.active[branch.model].index(branch) * self.size * self.repeat
        return slice(first, first + self.size * self.repeat)


@contextmanager
def guided(session: Session) -> Iterator[Session]:
    """Puts the model's `generate` under the guide of a session inside the block.

    Every branch of the model is a block of rows of one batched forward with one cache.
    """
    model = session.model
    prepare, forward = model.prepare_inputs_for_generation, model.forward
    key = cache_name(model)

    @functools.wraps(prepare)
    def stacked(ids: Tensor, *args: Any, **named: Any) -> dict[str, Any]:
        session.run.advance()
        session.repeat = len(ids) // session.size
        session.drop("")
        session.ids, session.fresh = ids, named.get("next_sequence_length")
        rows, mask = session.stack("", ids)
        named.pop("position_ids", None)
        if session.decoder_only:
            named["attention_mask"] = mask
            named |= positions(model, mask, 0)
        else:
            named |= _encoder_rows(session)
        session._expected = True
        return dict(prepare(rows, *args, **named))

    @functools.wraps(forward)
    def combined(*args: Any, **named: Any) -> Any:
        if not session._expected:
            return forward(*args, **named)
        session._expected = False
        if session.hidden:
            named["output_hidden_states"] = True
        out = forward(*args, **named)
        session.hold("", out.get(key, named.get(key)))
        if session.hidden:
            session.keep_hidden(out.hidden_states[-1])
        values = session.split("", out.logits) | session.others(session.ids, session.fresh)
        out.logits = session.combine(values, session.tail(session.ids))[:, None]
        return out

    model.prepare_inputs_for_generation, model.forward = stacked, combined
    try:
        yield session
    finally:
        for name in ("prepare_inputs_for_generation", "forward"):
            model.__dict__.pop(name, None)


def _encoder_rows(session: Session) -> dict[str, Any]:
    """Encoder states and masks of all branches; encoded once."""
    from transformers.modeling_outputs import BaseModelOutput

    todo = [b for b in session.active[""] if b not in session.encoded]
    if todo:
        own = [session.prompts[b.state] for b in todo]
        ids, mask = torch.cat([p.ids for p in own]), torch.cat([p.mask for p in own])
        hidden = session.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        for branch, h, m in zip(todo, hidden.chunk(len(todo)), mask.chunk(len(todo)), strict=True):
            session.encoded[branch] = (h, m)
    kept = [session.encoded[b] for b in session.active[""]]
    return {
        "encoder_outputs": BaseModelOutput(torch.cat([session.expand(h) for h, _ in kept])),
        "attention_mask": torch.cat([session.expand(m) for _, m in kept]),
    }
