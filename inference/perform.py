"""The engine of a model that takes and gives tensors: it follows the card, whatever runs the model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from inference import admission, answers
from inference.errors import InputRefused
from inference.findings import Findings, NotAnalysed
from inference.outgoing import keeps_text
from inference.statistics import Features, observed

if TYPE_CHECKING:
    from inference.card import Card
    from inference.engine import Engine, ImageFile, Job, Model

__all__ = ["CardEngine", "GatedEngine"]


class CardEngine:
    """An engine (:class:`inference.engine.Engine`) that follows one card over one loaded model."""

    def __init__(self, card: Card, model: Model) -> None:
        self._card = card
        self._model = model

    def run(self, job: Job) -> Findings:
        """Run one job; input that must not be read becomes "not analysed", with its reason.

        Raises
        ------
        EngineFailure
            If the model broke or answered what its card does not say.
        """
        try:
            findings = answers.checked(self._card, self._run(job))
        except InputRefused as refusal:
            findings = _refused(job, refusal)
        return replace(observed(findings), provider=self._model.provider, precision=self._model.precision)

    def close(self) -> None:
        """Let go of the model."""
        self._model.close()

    def _run(self, job: Job) -> Findings:
        _require_roles(self._card, job)
        if self._card.task == "segmentation" and self._card.layout == "nchw":
            from inference.segment2d import segment_radiograph

            return segment_radiograph(self._card, self._model, job.input_set[self._card.inputs[0].role])
        if self._card.task == "segmentation":
            from inference.segment import segment

            return segment(self._card, self._model, job.input_set)
        from inference.classify import classify

        return classify(self._card, self._model, job.input_set[self._card.inputs[0].role])


class GatedEngine:
    """An engine that reads its files by itself, between the checks before and after that every model has."""

    def __init__(self, card: Card, engine: Engine) -> None:
        self._card = card
        self._engine = engine

    def run(self, job: Job) -> Findings:
        """Run one job; see :meth:`CardEngine.run`."""
        words: dict[str, None] = {}
        first: Features = {}
        passed: dict[str, tuple[ImageFile, ...]] = {}
        try:
            _require_roles(self._card, job)
            for role in self._card.inputs:
                if not job.input_set.get(role.role):
                    continue
                held = admission.series(role, job.input_set[role.role], textless=keeps_text(self._card))
                words |= dict.fromkeys(held.words)
                first = first or held.first
                passed[role.role] = held.files
        except InputRefused as refusal:
            return observed(_refused(job, refusal))
        # One lateral view must not cost the frontal beside it its finding, nor be read in its place.
        findings = answers.checked(self._card, self._engine.run(replace(job, input_set=passed)))
        return observed(
            replace(
                findings,
                warnings=(*words, *findings.warnings),
                statistics={"inputs": [first], **findings.statistics},
            )
        )

    def close(self) -> None:
        """Let go of the engine."""
        self._engine.close()


def _require_roles(card: Card, job: Job) -> None:
    roles = {role.role for role in card.inputs}
    missing = [role.role for role in card.inputs if not role.optional and not job.input_set.get(role.role)]
    if missing or set(job.input_set) - roles:
        lacking = f"; not given: {', '.join(missing)}" if missing else ""
        raise InputRefused("missing-role", f"the model reads {', '.join(sorted(roles))} and no other{lacking}")


def _refused(job: Job, refusal: InputRefused) -> Findings:
    return Findings(
        images=tuple(file.key for given in job.input_set.values() for file in given),
        not_analysed=NotAnalysed(reason=refusal.reason, text=refusal.text, code=refusal.code),
    )
