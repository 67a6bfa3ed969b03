"""What happens to canonical parameters beside training: held-out evaluation, samples of text and keyframes."""

from __future__ import annotations

import time

import numpy as np

from es_service import keyframes
from es_service.aggregator import Canonical, HeldOut
from es_service.config import RunConfig
from es_service.data.examples import windows_of_rows
from es_service.directory import RunDirectory
from es_service.models.sampling import visible
from es_service.models.ternary_net import judge
from es_service.problem import is_classifier, is_egg, layout_of, net_of, shape_of, write_text
from es_service.types import Int8Array, Ops, UInt8Array

__all__ = ["Keeper", "held_out", "sample_text"]

_SAMPLE_TEMPERATURE = 0.7
_SAMPLE_SEED = 1


def held_out(config: RunConfig, ops: Ops, parameters_P: Int8Array, rows_SW: UInt8Array) -> HeldOut:
    """The unperturbed model on rows (S, T + 1) of text, each from a zero state, or on images with their labels."""
    if is_egg(config):
        return HeldOut(_egg_bits(config, ops, parameters_P, rows_SW))
    net = net_of(config)
    if is_classifier(config):
        judged = judge(net, parameters_P, rows_SW[:, :-1], rows_SW[:, -1])
    else:
        judged = judge(net, parameters_P, *windows_of_rows(rows_SW, net.context))
    return HeldOut(judged.bits / judged.examples, judged.right / judged.examples)


def _egg_bits(config: RunConfig, ops: Ops, parameters_P: Int8Array, rows_SW: UInt8Array) -> float:
    """Integer loss in bits/byte.

    The integer log-sum-exp truncates: the figure reads about 0.03 bits/byte low against a floating-point loss.
    """
    scores_S = ops.scores(ops.prepare(shape_of(config), parameters_P), rows_SW, 0)
    total = int(scores_S.sum(dtype=np.int64))
    rows, columns = rows_SW.shape
    return float(-total / (16 * rows * (columns - 1)))


def sample_text(config: RunConfig, ops: Ops, parameters_P: Int8Array) -> str:
    """Text from the start of a document, always with the same draws, so that only the model differs."""
    what = (b"", config.deployment.sample_bytes, _SAMPLE_TEMPERATURE, _SAMPLE_SEED)
    return visible(write_text(config, ops, parameters_P, *what))


class Keeper:
    """Evaluates and saves generations as the deployment says. Called from one thread at a time."""

    def __init__(self, config: RunConfig, directory: RunDirectory, ops: Ops, rows_SW: UInt8Array) -> None:
        self.config = config
        self.directory = directory
        self.ops = ops
        self.rows_SW = rows_SW
        self._evaluated = self._saved = -1

    def after(self, canonical: Canonical) -> HeldOut | None:
        """After each update; held-out figures where this generation is evaluated."""
        deployment = self.config.deployment
        final = canonical.generation == deployment.generations
        if final or canonical.generation % deployment.keyframe_every == 0:
            self._save(canonical)
        if final or canonical.generation % deployment.evaluate_every == 0:
            return self._evaluate(canonical)
        return None

    def last(self, canonical: Canonical) -> HeldOut | None:
        """At the end of a run: what has not been done for its last generation."""
        if self._saved != canonical.generation:
            self._save(canonical)
        return None if self._evaluated == canonical.generation else self._evaluate(canonical)

    def distrust(self) -> str:
        """Parameters since an unknown generation do not follow from the votes: set all keyframes aside.

        Says how to go on.
        """
        left = keyframes.set_aside(self.directory.keyframes_path)
        name, goal = self.directory.name, self.config.deployment.generations
        return (f"Remove {', '.join(map(str, left))} by hand. " if left else "The keyframes are set aside. ") + (
            "Take those machines out and resume: all is rebuilt from the votes. Where `resume` then names a generation "
            "whose digest is not the journal's, go on from the one before it, G, in another run: "
            f"`es-service steps {name} --generation G --out {name}.steps`, `es-service from-steps {name}.steps "
            f"--resume-as OTHER`, `es-service resume OTHER --set deployment.generations={goal}`"
        )

    def _save(self, canonical: Canonical) -> None:
        layout, spec_hash = layout_of(self.config), self.config.spec_hash
        directory = self.directory.keyframes_path
        keyframes.save(directory, layout, canonical.parameters_P, canonical.generation, canonical.digest, spec_hash)
        self._saved = canonical.generation
        if self.config.deployment.keep_keyframes:
            keyframes.prune(directory, self.config.deployment.keep_keyframes)

    def _evaluate(self, canonical: Canonical) -> HeldOut:
        self._evaluated = canonical.generation
        if self.config.deployment.sample_bytes and not is_classifier(self.config):
            self._sample(canonical)
        return held_out(self.config, self.ops, canonical.parameters_P, self.rows_SW)

    def _sample(self, canonical: Canonical) -> None:
        began = time.perf_counter()
        text = sample_text(self.config, self.ops, canonical.parameters_P)
        seconds = round(time.perf_counter() - began, 6)
        self.directory.log_sample(generation=canonical.generation, text=text, seconds=seconds)
