"""A language model under a guide while `model.generate` runs: one batched forward, one cache."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fairlead.autoregressive.calling import cache_name, codebooks, decoder, parameters, positions
from fairlead.autoregressive.past import Past
from fairlead.autoregressive.prefill import prefilled
from fairlead.autoregressive.prompts import Encoded, Zeros
from fairlead.guidance.algebra import Guide
from fairlead.guidance.branch import COND, Branch, Predictions
from fairlead.guidance.context import Context, Plan, Run
from fairlead.guidance.domains import floored, normalised
from fairlead.guidance.guided import branches, finish, rows_to_evaluate, under_policies
from fairlead.parameters import nearest

DELAYS = "decoder_delay_pattern_mask"
"""What is fixed of the codes of models that write several at once, a row a code."""


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
        inputs: Further inputs by name, each by state or by model.
        zeros: States that are zeros behind the encoder.
    """

    def __init__(
        self,
        model: Any,
        guide: Guide,
        prompts: Mapping[str, Encoded],
        models: Mapping[str, Any],
        run: Run,
        inputs: Mapping[str, Mapping[str, Tensor]] | None = None,
        zeros: Mapping[str, Zeros] | None = None,
    ) -> None:
        guide.require("logprob")
        self.model, self.guide, self.prompts, self.run = model, guide, dict(prompts), run
        self.models = {"": model, **models}
        self.inputs, self.zeros = dict(inputs or {}), dict(zeros or {})
        self.codebooks = codebooks(model)
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
        vocabulary = decoder(self.model).vocab_size
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
            state = self.state(branch)
            if state not in self.prompts:
                raise ValueError(
                    f"generate: the guide asks for the condition state {state!r}: pass "
                    f"states={{{state!r}: prompts}}; {nearest(state, self.prompts)}"
                )
            if branch.model not in self.models:
                raise ValueError(
                    f"generate: the guide asks for a model {branch.model!r}: pass "
                    f"models={{{branch.model!r}: model}}; {nearest(branch.model, self.models)}"
                )
            other = self.models[branch.model]
            if other.config.is_encoder_decoder == self.decoder_only:
                raise ValueError(
                    f"generate: one of the generating model and model {branch.model!r} has an "
                    "encoder, the other has none"
                )
            size = decoder(other).vocab_size
            if size != vocabulary:
                raise ValueError(
                    f"generate: the vocabulary of model {branch.model!r} has {size} tokens, that "
                    f"of the generating one {vocabulary}; both must be the same"
                )

        if self.zeros and self.decoder_only:
            raise ValueError(
                f"generate: the states {sorted(self.zeros)} are zeros behind an encoder, but the "
                "model has none"
            )
        self._check_inputs()

    def _check_inputs(self) -> None:
        for name, values in self.inputs.items():
            if not any(self.takes(model, name) for model in self.models.values()):
                raise ValueError(f"generate: no model takes the input {name!r}")
            known = {**self.prompts, **{k: None for k in self.models if k}}
            for key, value in values.items():
                if key not in known:
                    raise ValueError(
                        f"generate: the input {name!r} is given for {key!r}, which is neither a "
                        f"state nor a model; {nearest(key, known)}"
                    )
                if len(value) != self.size:
                    raise ValueError(
                        f"generate: the input {name!r} of {key!r} has {len(value)} rows for "
                        f"{self.size} prompts"
                    )
            if "cond" not in values:
                raise ValueError(f"generate: the input {name!r} is not given for 'cond'")

    def state(self, branch: Branch) -> str:
        """The state whose prompts a branch sees; one with some conditions goes by their names."""
        if not branch.nulled and not branch.taken:
            return branch.state
        asked = branch.name.rpartition(": ")[2]
        if asked == "none":
            return "null"
        parts = set(asked.split("+"))
        return next((name for name in self.prompts if set(name.split("+")) == parts), asked)

    def prompt(self, branch: Branch) -> Encoded:
        """The prompts that a branch sees."""
        return self.prompts[self.state(branch)]

    def takes(self, model: Any, name: str) -> bool:
        """Whether a model, or its encoder, takes an input."""
        encoder = model.get_encoder() if model.config.is_encoder_decoder else None
        return name in parameters(model) or (encoder is not None and name in parameters(encoder))

    def given(self, name: str, of: list[Branch]) -> Tensor:
        """An input of some branches, a row a prompt and branch."""
        values = self.inputs[name]
        keys = [(b.model, self.state(b), "cond") for b in of]
        return torch.cat([values[next(k for k in key if k in values)] for key in keys])

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
        if not any(b.model == "" for b in last):  # `generate` runs its model all the same
            last[COND] = self.run.steps
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
        own = [self.prompt(b) for b in self.active[name]]
        rows = [torch.cat([self.expand(p.ids), tail], 1) for p in own]
        masks = [torch.cat([self.expand(p.mask), torch.ones_like(tail)], 1) for p in own]
        return torch.cat(rows), torch.cat(masks)

    def drop(self, name: str) -> None:
        """Takes the rows of branches that are never wanted again out of a model's cache."""
        before = self.active[name]
        after = [b for b in before if self.last_use[b] >= self.run.step]
        if len(after) == len(before) or not after:
            return
        # the codebooks of a token share a row of the cache
        cache, rows = self.caches.get(name), self.size * self.repeat // self.codebooks
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
            model = self.models[name]
            stacked, mask = self.stack(name, ids)
            given: dict[str, Any] = {"attention_mask": mask, "use_cache": True}
            key = cache_name(model)
            start = 0
            if name in self.caches and fresh is not None:
                given[key], start = self.caches[name], -fresh
            if self.decoder_only:
                given |= {"input_ids": stacked[:, start:], **positions(model, mask, start)}
                if start == 0:
                    given |= self.further(name)  # its cache holds them afterwards
            else:
                given |= {"decoder_input_ids": stacked[:, start:], **_encoder_rows(self, name)}
            out = model(**given)
            self.hold(name, out.get(key))
            values |= self.split(name, out.logits)
        return values

    def further(self, name: str) -> dict[str, Tensor]:
        """Further inputs that a model takes itself, of all its branches."""
        of = self.active[name]
        return {
            key: self.expand(self.given(key, of))
            for key in self.inputs
            if key in parameters(self.models[name])
        }

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
        prompt, tail = self.prompt(branch), self.ids[:, self.width :]
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
            named |= _encoder_rows(session, "")
        named.pop("mm_encoder_outputs", None)  # of cond alone
        named |= session.further("")
        if named.get(DELAYS) is not None:
            named[DELAYS] = named[DELAYS].repeat(len(session.active[""]), 1)
        session._expected = True
        return dict(prepare(rows, *args, **named))

    @functools.wraps(forward)
    def combined(*args: Any, **named: Any) -> Any:
        if not session._expected:
            return forward(*args, **named)
        session._expected = False
        if session.hidden:
            named["output_hidden_states"] = True
        out = None
        if session.run.step == 0 and session.decoder_only and not args:
            out = prefilled(forward, key, named, len(session.active[""]))
        if out is None:
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


def _encoder_rows(session: Session, name: str) -> dict[str, Any]:
    """Encoder states and masks of all branches of a model; encoded once."""
    from transformers.modeling_outputs import BaseModelOutput

    active = session.active[name]
    todo = [b for b in active if b not in session.encoded]
    if todo:
        own = [session.prompt(b) for b in todo]
        ids, mask = torch.cat([p.ids for p in own]), torch.cat([p.mask for p in own])
        encoder = session.models[name].get_encoder()
        taken = parameters(encoder)
        further = {k: session.given(k, todo) for k in session.inputs if k in taken}
        hidden = encoder(input_ids=ids, attention_mask=mask, **further).last_hidden_state
        for branch, h, m in zip(todo, hidden.chunk(len(todo)), mask.chunk(len(todo)), strict=True):
            zeros = session.zeros.get(session.state(branch))
            if zeros is not None:
                h, m = torch.zeros_like(h), m if zeros.seen else torch.zeros_like(m)
            session.encoded[branch] = (h, m)
    kept = [session.encoded[b] for b in active]
    times = session.repeat // session.codebooks
    return {
        "encoder_outputs": BaseModelOutput(
            torch.cat([h.repeat_interleave(times, 0) for h, _ in kept])
        ),
        "attention_mask": torch.cat([m.repeat_interleave(times, 0) for _, m in kept]),
    }
