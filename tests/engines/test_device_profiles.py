"""Device profiles: every shipped one is sound, and whatever else a file holds is refused by the key that is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.cli import run
from engines.profile import FOLDER, RECIPE_SM, Profile, load_profile, parse_profile, profile_names
from f2edge.errors import InputError
from f2edge.spec.graphs import SIGNATURES

NAMES = ("orin-nano", "orin-nx", "agx-orin-64", "thor-t4000", "thor-t5000", "t4", "l4", "a10", "l40s", "a100", "h100", "h200")
TEXT = (FOLDER / "orin-nano.toml").read_text(encoding="utf-8")


def test_every_device_of_the_mission_has_a_profile() -> None:
    assert set(profile_names()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_says_where_its_figures_come_from_and_what_it_runs(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert set(profile.sources) >= {"memory", "bandwidth", "reserved", "software", "recipes", "build", *profile.rates}
    assert set(profile.recipes) == set(SIGNATURES)
    assert all(RECIPE_SM[recipe] <= profile.sm for recipe in profile.recipes.values())
    assert profile.version == profile.software[0].tensorrt
    assert ("bf16" in profile.rates) == (profile.sm >= 80)
    assert ("fp8" in profile.rates) == (profile.sm >= 89)
    assert ("fp4" in profile.rates) == (profile.sm >= 100)


def test_orin_is_what_jetpack_6_says() -> None:
    profile = load_profile("orin-nano")
    assert (profile.sm, profile.version, profile.memory.integrated) == (87, "10.3", True)
    assert profile.recipes["mmu_extend"] == "int4"


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("sm = 87", "sm = 7", "sm in"),
        ("sm = 87", 'sm = "87"', "sm must be int"),
        ("sm = 87", "sm = 75", "needs compute capability 80"),
        ("sm = 87", "", "sm missing"),
        ("sm_count = 8", "sm_count = 8\ncolour = 1", "unknown keys colour"),
        ("total_gb = 8.0", "total_gb = 1.0", "total_gb above"),
        ("bandwidth_gb_s = 102.0", "bandwidth_gb_s = nan", "bandwidth"),
        ("fp16 = 16.7", "fp12 = 16.7", "rates of"),
        ("int8 = 33.4", "int8 = -1.0", "each above 0"),
        ('tensorrt = "10.3"', 'tensorrt = "8.6"', "10.3 or newer"),
        ('tensorrt = "10.3"', 'tensorrt = "ten"', "10.3 or newer"),
        ('t2i_step = "int8"', 't2i_step = "int3"', "choose one of"),
        ('t2i_step = "int8"', "", "one for every graph"),
        ("images = [1]", "images = []", "build.images"),
        ("images = [1]", "images = 1", "must be a list"),
        ("workspace_mib = 768", "workspace_mib = 1", "workspace_mib"),
        ("optimization_level = 2", "optimization_level = 9", "optimization_level"),
        ('bandwidth = "', 'somewhere = "', "sources lacks bandwidth"),
        ("[memory]", "[memory", "not valid TOML"),
    ],
)
def test_a_wrong_profile_is_refused_by_key(old: str, new: str, word: str) -> None:
    assert old in TEXT
    with pytest.raises(InputError, match=r"device profile 'mine'") as caught:
        parse_profile(TEXT.replace(old, new, 1).encode(), "mine")
    assert word in str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_bytes_of_nobody_are_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        parse_profile(data, "mine")


@given(position=st.integers(0, len(TEXT) - 1), byte=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_damaged_profile_is_a_profile_or_an_error(position: int, byte: int) -> None:
    data = bytearray(TEXT.encode())
    data[position % len(data)] = byte
    try:
        assert isinstance(parse_profile(bytes(data), "mine"), Profile)
    except InputError as error:
        assert "device profile 'mine'" in str(error)  # noqa: PT017 - either outcome is allowed, nothing else


def test_the_command_lists_devices_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profiles", "t4", "h200", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["t4", "h200"]
    assert rows[0]["memory"]["bandwidth_gb_s"] == 320.0
    assert rows[1]["recipes"]["t2i_step"] == "fp8"


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profiles"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)


def test_an_unknown_device_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profiles", "nano-orin"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "orin-nano" in error
