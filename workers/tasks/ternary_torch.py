"""The ternary networks in PyTorch: exact directional derivatives by forward mode, and differences of an objective.

Equal to `es_service.models.ternary_net` up to rounding. Suffixes: U perturbations, B examples, I inputs of a linear
map, O its outputs.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from es_service.models.ternary_net import EPSILON, Net
from es_service.types import Int8Array, NonZeros, TensorSpec, UInt8Array

__all__ = ["Judge"]

_TRACING = threading.Lock()
"""The transforms of PyTorch keep state for the whole process, which may hold several judges."""

_TIE = 2.0**-12
"""Logits tie if they are closer than this share of the largest of their example."""

FloatArray = npt.NDArray[np.float32]


class Judge:
    """Judges `chunk` perturbations of one network at once on one batch; `look_at` it, then ask in any thread.

    The forward-mode program pushes several tangents through the network at once. Linear maps are written out, as they
    take no more than the tangent; what lies between is `torch.func.jvp` under `torch.func.vmap`. All of it is written
    down once as a graph of plain operations: running that is free of the transforms' global state. A perturbation
    enters as tangents of the outputs of the maps that it touches, made from its few non-zeros; the outputs themselves
    are those of the one plain pass.
    """

    def __init__(self, net: Net, objective: Literal["loss", "errors"], chunk: int) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.net = net
        self.layout = net.layout()
        self.objective = objective
        self.chunk = chunk
        self._graph: Any = None
        self._weights: list[Any] = []

    def use_one_thread(self) -> None:
        """Operations of this thread are not split, so that their sums have one order."""
        self.torch.set_num_threads(1)

    def look_at(self, parameters_P: Int8Array, inputs_BI: UInt8Array, targets_B: UInt8Array) -> float:
        """Take parameters and a batch; the loss in nats an example."""
        torch = self.torch
        with torch.no_grad():
            views = self.layout.views(parameters_P)
            self._weights = [torch.from_numpy(views[t.name].astype(np.float32)) for t in self.layout.tensors]
            self._inputs = torch.from_numpy(inputs_BI.astype(np.int64 if self.net.embedding else np.float32))
            if not self.net.embedding:
                self._inputs /= self.net.white
            self._targets = torch.from_numpy(targets_B.astype(np.int64))
            self._seen: list[Any] = []  # the inputs of every linear map
            self._made: list[Any] = []  # its outputs
            logits = self._logits(self._weights, self._seen, self._made)
            return float(self._loss(logits, self._targets))

    def prepare_derivatives(self) -> None:
        """Write the forward-mode program down, once, for batches of the size looked at."""
        if self._graph is not None:
            return
        make_fx = importlib.import_module("torch.fx.experimental.proxy_tensor").make_fx
        nothing = NonZeros(np.zeros(1, np.int64), np.empty(0, np.int64), np.empty(0, np.int8))
        example = (self._weights, self._made, self._targets, self._tangents(nothing))
        with _TRACING:
            self._graph = make_fx(lambda *arguments: self._pushforward(*arguments))(*example)

    def derivatives(self, found: NonZeros) -> FloatArray:
        """Minus the derivative of the loss along each perturbation: (chunk,) float32, 0 where there is none."""
        with self.torch.no_grad():
            tangents = self._tangents(found)
            slopes_U: FloatArray = self._graph(self._weights, self._made, self._targets, tangents).numpy()
        return -slopes_U

    def differences(self, found: NonZeros) -> FloatArray:
        """Half of what the objective falls by from one end of each perturbation to the other: (chunk,) float32."""
        falls_U = np.zeros(self.chunk, np.float32)
        with self.torch.no_grad():
            for unit in range(len(found.starts_U1) - 1):
                part = slice(int(found.starts_U1[unit]), int(found.starts_U1[unit + 1]))
                ends = [self._objective_at(found, part, sign) for sign in (1, -1)]
                falls_U[unit] = (ends[1] - ends[0]) / 2
        return falls_U

    def _objective_at(self, found: NonZeros, part: slice, sign: int) -> float:
        weights = list(self._weights)
        for index, places, signs in self._by_tensor(found, part):
            moved = weights[index].clone()
            moved.view(-1)[self.torch.from_numpy(places)] += self.torch.from_numpy(sign * signs.astype(np.float32))
            weights[index] = moved
        logits = self._logits(weights, [], [])
        if self.objective == "errors":
            return self._errors(logits)
        return float(self._loss(logits, self._targets))

    def _by_tensor(self, found: NonZeros, part: slice) -> list[tuple[int, npt.NDArray[np.int64], Int8Array]]:
        """(tensor, places in it, signs) of some non-zeros."""
        positions_N, signs_N = found.positions_N[part], found.signs_N[part]
        groups = []
        for tensor in self.layout.tensors:
            inside = (positions_N >= tensor.offset) & (positions_N < tensor.offset + tensor.size)
            if inside.any():
                groups.append((tensor.index, positions_N[inside] - tensor.offset, signs_N[inside]))
        return groups

    # The network.

    def _logits(self, weights: list[Any], seen: list[Any], made: list[Any]) -> Any:
        """What comes out of the last map (B, V); `seen` and `made` get the inputs and outputs of every map."""
        functional, rest = self.torch.nn.functional, list(weights)
        h = self._inputs
        if self.net.embedding:
            h = functional.embedding(h, rest.pop(0)).flatten(1)
        for n in range(self.net.maps):
            seen.append(h if n == 0 else self._between(made[-1]))
            made.append(functional.linear(seen[-1], rest[2 * n], rest[2 * n + 1]))
        return made[-1]

    def _between(self, outputs: Any) -> Any:
        """The inputs of a map from the outputs of the one before it."""
        functional = self.torch.nn.functional
        return functional.relu(functional.layer_norm(outputs, outputs.shape[-1:], eps=EPSILON))

    def _loss(self, logits: Any, targets: Any) -> Any:
        return self.torch.nn.functional.cross_entropy(logits * self.net.scale, targets)

    def _errors(self, logits: Any) -> float:
        """The share of examples whose label does not beat all others.

        Sums of ternary weights tie often. A tie is an error, and what is closer than rounding is a tie: which of two
        equal logits comes out larger is up to the CPU.
        """
        places = self._targets[:, None]
        own = logits.gather(1, places)[:, 0]
        best = logits.scatter(1, places, -self.torch.inf).amax(dim=1)
        return int((own - best <= _TIE * logits.abs().amax(dim=1)).sum()) / len(places)

    def _pushforward(self, weights: list[Any], made: list[Any], targets: Any, tangents: list[Any]) -> Any:
        """Derivatives (U,) of the loss along each of U tangents, from the outputs `made` of every map."""
        matrices, added, functional = weights[bool(self.net.embedding) :: 2], list(tangents), self.torch.nn.functional
        tangent = added.pop(0)
        if self.net.embedding:
            tangent = functional.linear(tangent, matrices[0]) + added.pop(0)
        for outputs, matrix, more in zip(made, matrices[1:], added, strict=False):
            tangent = functional.linear(self._along(self._between, outputs, tangent), matrix) + more
        return self._along(lambda logits: self._loss(logits, targets), made[-1], tangent)

    def _along(self, function: Callable[[Any], Any], at: Any, tangents: Any) -> Any:
        """The derivatives of a function along each of U tangents."""
        func = self.torch.func
        return func.vmap(lambda tangent: func.jvp(function, (at,), (tangent,))[1])(tangents)

    # Tangents.

    def _tangents(self, found: NonZeros) -> list[Any]:
        """What each perturbation adds to the embeddings, if there are any, and to each map: (U, B, O) float32."""
        torch, batch, net = self.torch, len(self._targets), self.net
        sizes = [net.sizes[0]] * bool(net.embedding) + list(net.sizes[1:])
        made = [torch.zeros((self.chunk, batch, size)) for size in sizes]
        unit_N = np.repeat(np.arange(len(found.starts_U1) - 1), np.diff(found.starts_U1))
        for index, places, signs in self._by_tensor(found, slice(None)):
            tensor = self.layout.tensors[index]
            inside = (found.positions_N >= tensor.offset) & (found.positions_N < tensor.offset + tensor.size)
            for unit, place, sign in zip(unit_N[inside].tolist(), places.tolist(), signs.tolist(), strict=True):
                self._add(made, tensor, unit, place, sign)
        return made

    def _add(self, made: list[Any], tensor: TensorSpec, unit: int, place: int, sign: int) -> None:
        """One non-zero: a weight adds its input to one output, an embedding adds 1 wherever its byte stands."""
        if tensor.name == "emb":
            byte, entry = divmod(place, self.net.embedding)
            slots_BC = made[0][unit].view(-1, self.net.context, self.net.embedding)[:, :, entry]
            slots_BC += sign * (self._inputs == byte)
            return
        number = int(tensor.name.split(".")[1])
        outputs_BO = made[number + bool(self.net.embedding)][unit]
        if tensor.kind == "vector":
            outputs_BO[:, place] += sign
        else:
            output, column = divmod(place, tensor.shape[1])
            outputs_BO[:, output] += sign * self._seen[number][:, column]
