"""The forward and the backward pass of a step, launched by Python or replayed from a CUDA graph.

A small network has some six hundred kernels in a step, which a GPU is done with before a slow core has
launched them; and another thread of that core's Python draws the next pairs. A graph is one launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import torch

from regkit.pretrain.step import Batch, Student
from regkit.synthesis.noise import Rng

Losses = dict[str, torch.Tensor]
Work = Callable[[], Losses]
_WARM_UP = 3  # calls, as torch's documentation has it: libraries choose and allocate in the first ones


class ForwardBackward:
    """The losses of a batch, which leave their gradients with the parameters of the student.

    Args:
        student: on its device.
    """

    def __init__(self, student: Student) -> None:
        self.student = student

    def __call__(self, batch: Batch, rng: Rng) -> Losses:
        """Every loss by name, without a history."""
        self.student.zero_grad(set_to_none=True)
        losses = self.student.losses(batch, rng)
        self.student.total(losses).backward()
        return {name: value.detach() for name, value in losses.items()}


class GraphForwardBackward(ForwardBackward):
    """The same, recorded for each shape of a batch when it first comes; of losses that draw nothing.

    Args:
        student: whose parameters keep the tensors that they have, and the gradients that they get here.
        record: makes of work, which reads and writes the same tensors each time, what does it again.
    """

    def __init__(self, student: Student, record: Callable[[Work], Work]) -> None:
        super().__init__(student)
        self.record = record
        self.parameters = list(student.parameters())
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient
        self.recorded: dict[torch.Size, tuple[Batch, Work]] = {}

    def __call__(self, batch: Batch, rng: Rng) -> Losses:
        shape = batch.images.shape
        if shape not in self.recorded:
            held = _copied(batch)
            self.recorded[shape] = held, self.record(partial(self._work, held, rng))
        held, work = self.recorded[shape]
        for field in fields(Batch):
            getattr(held, field.name).copy_(getattr(batch, field.name))
        # What is done next writes over what this gives.
        return {name: value.clone() for name, value in work().items()}

    def _work(self, batch: Batch, rng: Rng) -> Losses:
        losses = self.student.losses(batch, rng)
        gradients = torch.autograd.grad(self.student.total(losses), self.parameters)
        torch._foreach_copy_(self.gradients, gradients)
        return {name: value.detach() for name, value in losses.items()}


def forward_backward_for(student: Student) -> ForwardBackward:
    """Those that are quickest where the student lies."""
    loss = student.config.loss
    # Contrast draws its anchors, asks the device how many it has, and keeps statistics in its projections.
    if loss.local or loss.label or next(student.parameters()).device.type != "cuda":
        return ForwardBackward(student)
    return GraphForwardBackward(student, partial(_graph, pool=torch.cuda.graph_pool_handle()))


def _graph(work: Work, pool: Any) -> Work:
    """Work as a CUDA graph; all graphs of a pool share their memory, so that each is done before the next."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Pairs are drawn on the device by another thread meanwhile, which is to go on.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        losses = work()

    def replay() -> Losses:
        graph.replay()
        return losses

    return replay


def _copied(batch: Batch) -> Batch:
    return Batch(**{field.name: getattr(batch, field.name).clone() for field in fields(Batch)})
