"""Work shared out among copies of the process."""

from __future__ import annotations

import os

import pytest

from services.sharing import shared


def test_every_share_is_done_once_by_a_process_of_its_own_that_knows_what_this_one_knew() -> None:
    known = {"answer": 40}
    found = shared(3, lambda share: (known["answer"] + share, os.getpid()))
    assert [answer for answer, _ in found] == [40, 41, 42]
    assert len({process for _, process in found}) == 3
    assert found[0][1] == os.getpid()


def test_what_a_copy_raised_is_said() -> None:
    def work(share: int) -> int:
        return 1 // (1 - share)

    with pytest.raises(RuntimeError, match="a copy of this process failed: ZeroDivisionError"):
        shared(2, work)
