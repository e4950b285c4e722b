"""mixup and CutMix of single samples."""

from __future__ import annotations

import pytest
import torch

from tltrain.data.mixing import Draw, Mixing, draw, mix

BLACK = torch.zeros(3, 10, 10, dtype=torch.uint8)
GREY = torch.full((3, 10, 10), 101, dtype=torch.uint8)


def draws(mixing: Mixing, count: int = 400, num_samples: int = 5) -> list[Draw]:
    torch.manual_seed(0)
    return [draw(mixing, 2, num_samples) for _ in range(count)]


def test_partner_is_any_other_sample() -> None:
    assert {d.partner for d in draws(Mixing(0.2, 0))} == {0, 1, 3, 4}
    assert {d.partner for d in draws(Mixing(0.2, 0), num_samples=3)} == {0, 1}


def test_both_kinds_share_the_samples_and_one_alone_takes_all() -> None:
    both = sum(d.kind == "mixup" for d in draws(Mixing(1, 1)))
    assert 150 < both < 250
    assert {d.kind for d in draws(Mixing(1, 0))} == {"mixup"}
    assert {d.kind for d in draws(Mixing(0, 1))} == {"cutmix"}


def test_shares_follow_the_beta_distribution() -> None:
    shares = torch.tensor([d.share for d in draws(Mixing(0.2, 0), 2000)], dtype=torch.float64)
    variance = 0.25 / (2 * 0.2 + 1)
    assert abs(float(shares.mean()) - 0.5) < 0.03
    assert abs(float(shares.var()) - variance) < 0.02


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.25, 76), (1.0, 0), (0.0, 101)])
def test_mixup_rounds_half_to_even(share: float, expected: int) -> None:
    mixed, weight = mix(BLACK, GREY, Draw("mixup", 1, share, (0, 0)))
    assert mixed.dtype == torch.uint8
    assert mixed.unique().tolist() == [expected]  # 50.5 -> 50, 75.75 -> 76
    assert weight == share


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 0.0), (0.95, 0.1)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 0.999, 1.0])
def test_cutmix_share_is_the_share_of_pixels(share: float, centre: tuple[float, float]) -> None:
    mixed, weight = mix(BLACK, GREY, Draw("cutmix", 1, share, centre))
    assert weight == pytest.approx(float((mixed == 0).double().mean()))
    assert set(mixed.unique().tolist()) <= {0, 101}
    assert torch.equal(BLACK, torch.zeros_like(BLACK))


def test_cutmix_box_in_the_middle_has_the_drawn_area() -> None:
    _, weight = mix(BLACK, GREY, Draw("cutmix", 1, 0.64, (0.5, 0.5)))
    assert weight == pytest.approx(1 - 0.36)


def test_alphas_come_from_the_spec() -> None:
    from data_helpers import spec

    assert Mixing.of(spec()) is None
    assert Mixing.of(spec(mixup=0.2)) == Mixing(0.2, 0.0)
