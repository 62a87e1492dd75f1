"""What the command line of the bench means, and how much it sends."""

import os
from pathlib import Path

import pytest
from bench.__main__ import ALL_SIZES, MIX, SIZES, loads_of, messages_of, options
from bench.source import content, sizes_of
from bench.systems import Also


def test_without_options_two_sizes_are_measured_and_the_page_is_left_alone() -> None:
    chosen = options([])
    assert (chosen.sizes, chosen.page) == (list(SIZES), False)
    assert "steady" not in chosen.only
    assert "memory" in chosen.only


def test_the_long_form_has_every_size_and_the_steady_run() -> None:
    chosen = options(["--long", "--page"])
    assert (chosen.sizes, chosen.page) == (list(ALL_SIZES), True)
    assert "steady" in chosen.only


def test_only_and_sizes_choose_what_is_measured() -> None:
    chosen = options(["--only", "tls", "--only", "mix", "--sizes", "2048,5000"])
    assert (chosen.only, chosen.sizes) == (["tls", "mix"], [2048, 5000])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sizes", "2k"], "numbers separated by commas are wanted"),
        (["--sizes", "10"], "--sizes go from 200"),
        (["--systems", "exim"], "choose from mailrail, postfix"),
        (["--also", "exim=127.0.0.1:25,1"], "--also needs --sink"),
        (["--also", "exim", "--sink", "127.0.0.1:9"], "NAME=HOST:PORT,PID"),
        (["--runs", "0"], "--runs up to 20"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_is_wanted(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options(arguments)
    assert said in capsys.readouterr().err


def test_a_system_that_is_taken_along_is_named_with_its_port_and_processes() -> None:
    found = Also.parse("exim=127.0.0.1:2525,4711,4712")
    assert found == Also("exim", "127.0.0.1", 2525, (4711, 4712))
    assert Also("me", "127.0.0.1", 25, (os.getpid(),)).system().parts() == {"me": [os.getpid()]}


@pytest.mark.parametrize(
    "text", ["", "exim=", "exim=h:25", "exim=h:x,1", "=h:25,1", "exim=:25,1", "exim=h:70000,1", "exim=h:25,x"]
)
def test_what_names_no_system_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"NAME=HOST:PORT,PID\[,PID...\] is wanted"):
        Also.parse(text)


def test_a_name_of_what_is_measured_anyway_is_refused() -> None:
    with pytest.raises(ValueError, match=r"give .* another name"):
        Also.parse("Postfix=127.0.0.1:25,1")


def test_a_process_that_is_gone_is_told_before_anything_is_measured() -> None:
    gone = next(pid for pid in range(400_000, 4_000_000) if not Path(f"/proc/{pid}").exists())
    with pytest.raises(LookupError, match=f"exim: there is no process {gone}"):
        Also("exim", "127.0.0.1", 25, (gone,)).system()


def test_large_messages_are_fewer_but_never_too_few_and_small_orders_are_kept() -> None:
    counts = [messages_of(size, 5000) for size in ALL_SIZES]
    assert counts[:2] == [5000, 5000]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 24
    assert messages_of(10 << 20, 5) == 5


def test_each_part_sends_without_and_with_reuse() -> None:
    for part in ("sizes", "recipients", "mix", "tls"):
        loads = loads_of(part, [2048], 100, 2)
        assert [load.reuse for load in loads] == [False, True]
        assert all(load.own is (part != "sizes") for load in loads)


def test_a_mix_has_the_shares_that_it_says_and_is_the_same_for_every_system() -> None:
    sizes = sizes_of(MIX, 2000)
    assert sizes == sizes_of(MIX, 2000)
    for size, weight in MIX:
        assert abs(sizes.count(size) / 2000 - weight / 100) < 0.03


@pytest.mark.parametrize("size", [200, 2048, 102_400])
def test_content_is_about_as_large_as_asked_and_ends_as_data_does(size: int) -> None:
    made = content(size)
    assert abs(len(made) - size) < 100
    assert made.endswith(b"\r\n.\r\n")
    assert max(map(len, made.split(b"\r\n"))) <= 998
