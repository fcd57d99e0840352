"""A small network in numpy that says which symbol comes next, with its gradient, and Adam.

    the last `context` symbols ─▶ embedding [width each] ─▶ hidden, ReLU ─▶ one logit a symbol

A feed-forward language model (Bengio et al. 2003): the least that still learns something from text by
the same rules as a large one, at some ten thousand parameters and a fraction of a millisecond a
batch. All parameters are one flat vector, so that it can be cut into fragments anywhere. It knows
nothing of nodes, fragments or where symbols come from.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from peerlm.mix.vector import Vector

Symbols = NDArray[np.int64]
Matrix = NDArray[np.float32]


class Layers(NamedTuple):
    """Views into a flat vector of parameters, or of their gradients."""

    embedding: Matrix  # [symbols, width]
    hidden: Matrix  # [context · width, hidden]
    hidden_bias: Vector
    output: Matrix  # [hidden, symbols]
    output_bias: Vector


class Perceptron:
    """The shape of a network; parameters are handed in flat. `size`: how many there are."""

    def __init__(self, symbols: int, context: int, width: int, hidden: int) -> None:
        self.symbols, self.context = symbols, context
        self._shapes: list[tuple[int, ...]] = [
            (symbols, width),
            (context * width, hidden),
            (hidden,),
            (hidden, symbols),
            (symbols,),
        ]
        self._bounds = np.cumsum([0] + [math.prod(shape) for shape in self._shapes]).tolist()
        self.size = int(self._bounds[-1])

    def layers(self, flat: Vector) -> Layers:
        ends = zip(self._bounds, self._bounds[1:], self._shapes, strict=False)
        return Layers(*(flat[start:stop].reshape(shape) for start, stop, shape in ends))

    def initial(self, rng: np.random.Generator) -> Vector:
        """Random weights [size] at which all activations are of order one, and logits small."""
        flat = np.zeros(self.size, np.float32)
        layers = self.layers(flat)
        layers.embedding[...] = rng.standard_normal(layers.embedding.shape, np.float32)
        for weight, gain in ((layers.hidden, 2.0), (layers.output, 0.5)):
            scale = math.sqrt(gain / weight.shape[0])
            weight[...] = rng.standard_normal(weight.shape, np.float32) * np.float32(scale)
        return flat

    def log_probabilities(self, flat: Vector, contexts: Symbols) -> Matrix:
        """Of each symbol [n, symbols] after each of `contexts` [n, context]."""
        return self._forward(self.layers(flat), contexts)[2]

    def gradient(self, flat: Vector, contexts: Symbols, nexts: Symbols, out: Vector) -> float:
        """The mean loss of a batch in nats a symbol; its gradient goes into `out` [size]."""
        count = len(nexts)
        rows = np.arange(count)
        here, there = self.layers(flat), self.layers(out)
        inputs, hidden, logs = self._forward(here, contexts)
        loss = -float(logs[rows, nexts].mean())
        slope = np.exp(logs, out=logs)  # of the loss by the logits
        slope[rows, nexts] -= 1
        slope /= np.float32(count)
        np.matmul(hidden.T, slope, out=there.output)
        slope.sum(axis=0, out=there.output_bias)
        back = slope @ here.output.T
        back *= hidden > 0
        np.matmul(inputs.T, back, out=there.hidden)
        back.sum(axis=0, out=there.hidden_bias)
        back = (back @ here.hidden.T).reshape(contexts.size, -1)
        chosen = np.zeros((contexts.size, self.symbols), np.float32)
        chosen[np.arange(contexts.size), contexts.ravel()] = 1
        np.matmul(chosen.T, back, out=there.embedding)
        return loss

    def _forward(self, here: Layers, contexts: Symbols) -> tuple[Matrix, Matrix, Matrix]:
        """Inputs to the hidden layer, its outputs, and log probabilities."""
        inputs: Matrix = here.embedding[contexts].reshape(len(contexts), -1)
        hidden: Matrix = np.matmul(inputs, here.hidden)
        hidden += here.hidden_bias
        np.maximum(hidden, 0, out=hidden)
        logs: Matrix = np.matmul(hidden, here.output)
        logs += here.output_bias
        logs -= logs.max(axis=1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
        return inputs, hidden, logs


class Adam:
    """Adam (arXiv 1412.6980) on a flat vector; `moments` can be forgotten a piece at a time."""

    MEAN, SQUARE, LEAST = 0.9, 0.99, 1e-8

    def __init__(self, size: int) -> None:
        self._mean = np.zeros(size, np.float32)
        self._square = np.zeros(size, np.float32)
        self._steps = 0

    def step(self, flat: Vector, gradient: Vector, rate: float) -> None:
        """Move `flat` [size] in place; `gradient` [size] is overwritten."""
        self._steps += 1
        self._mean += np.float32(1 - self.MEAN) * (gradient - self._mean)
        gradient *= gradient
        gradient -= self._square
        self._square += np.float32(1 - self.SQUARE) * gradient
        correction = math.sqrt(1 - self.SQUARE**self._steps) / (1 - self.MEAN**self._steps)
        np.sqrt(self._square, out=gradient)
        gradient += np.float32(self.LEAST)
        np.divide(self._mean, gradient, out=gradient)
        gradient *= np.float32(rate * correction)
        flat -= gradient

    def forget(self, piece: slice) -> None:
        self._mean[piece] = 0
        self._square[piece] = 0
