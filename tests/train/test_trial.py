"""Held-out text on its way around: one piece at a time, and what does not come is left out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from peerlm.train.trial import Piece, Trial
from peerlm.types import Instant

PIECES = [Piece(0, np.full((2, 9), n)) for n in range(3)]


def test_pieces_go_one_at_a_time_and_their_mean_is_the_loss() -> None:
    trial = Trial(PIECES)
    for number, loss in ((11, 1.0), (12, 2.0), (13, 6.0)):
        assert trial.may_send
        sent = trial.send(number, Instant(0.0))
        assert not trial.may_send
        assert trial.piece(number) is sent
        assert trial.piece(number + 1) is None
        trial.came_around(loss)
    assert trial.is_over
    assert trial.losses() == [pytest.approx(3.0)]


def test_what_is_late_is_left_out() -> None:
    trial = Trial(PIECES[:2])
    trial.send(1, Instant(0.0))
    trial.look(Instant(5.0), 5.0)
    assert trial.piece(1) is not None
    trial.look(Instant(5.1), 5.0)
    assert trial.piece(1) is None
    trial.send(2, Instant(6.0))
    trial.came_around(2.5)
    assert trial.is_over
    assert trial.losses() == [2.5]


def test_without_text_there_is_no_loss() -> None:
    trial = Trial([])
    assert trial.is_over
    assert math.isnan(*trial.losses())


def test_each_text_of_a_mixture_has_a_loss_of_its_own() -> None:
    trial = Trial([PIECES[0], Piece(1, PIECES[1].tokens), PIECES[2]], texts=3)
    for number, loss in enumerate((1.0, 2.0, 4.0)):
        trial.send(number, Instant(0.0))
        trial.came_around(loss)
    *known, nothing = trial.losses()
    assert known == [2.5, 2.0]
    assert math.isnan(nothing), "nothing of it was sent"
