"""Groupings of tokens, and the laws that the surgery methods keep on any Gramian."""

import pytest
import torch

from interventions.gradient_surgery.pcgrad import PCGrad
from zslx.intervention import StepView
from zslx.surgery import GROUPINGS


def view(sequences=4, positions=6, vocabulary=50, domains=3, seed=0) -> StepView:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocabulary, (sequences, positions), generator=generator)
    return StepView(
        step=1,
        steps=10,
        tokens=targets.roll(1, 1),
        targets=targets,
        losses=torch.rand(sequences, positions, generator=generator) * 5,
        domains=torch.arange(sequences) % domains,
        num_domains=domains,
        token_counts=torch.randint(1, 100, (vocabulary,), generator=generator),
    )


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 6)])
def test_every_token_has_one_group(grouping, shape):
    sequences, positions = shape
    v = view(sequences, positions)
    ids, count = PCGrad(groups=grouping, num_groups=min(3, sequences)).group_ids(v)
    assert ids.shape in ((sequences,), (sequences, positions))
    assert ids.dtype == torch.int64
    assert int(ids.min()) >= 0 and int(ids.max()) < count


def test_sequence_and_domain_groups():
    v = view()
    assert PCGrad().group_ids(v)[0].tolist() == [0, 1, 2, 3]
    ids, count = PCGrad(groups="domain").group_ids(v)
    assert ids.tolist() == [0, 1, 2, 0] and count == 3


def test_microbatches_are_consecutive_and_even():
    ids, count = PCGrad(groups="microbatch", num_groups=4).group_ids(view(sequences=10))
    assert count == 4 and ids.tolist() == sorted(ids.tolist())
    assert set(torch.bincount(ids).tolist()) == {2, 3}
    with pytest.raises(ValueError, match="more microbatches than the 4 sequences"):
        PCGrad(groups="microbatch", num_groups=5).group_ids(view())


def test_loss_quantiles_are_even_and_ordered():
    v = view(sequences=5, positions=7)
    ids, _ = PCGrad(groups="loss_quantile", num_groups=4).group_ids(v)
    counts = torch.bincount(ids.flatten())
    assert counts.max() - counts.min() <= 1
    for easier in range(3):
        assert v.losses[ids == easier].max() <= v.losses[ids == easier + 1].min()


def test_loss_quantiles_of_equal_losses_are_still_even():
    v = view(sequences=2, positions=4)
    v.losses.fill_(1.0)
    ids, _ = PCGrad(groups="loss_quantile", num_groups=4).group_ids(v)
    assert torch.bincount(ids.flatten()).tolist() == [2, 2, 2, 2]


def test_token_classes_depend_on_the_target_alone_and_share_the_vocabulary():
    v = view(sequences=2, positions=1024, vocabulary=2048)
    v.targets.copy_(torch.arange(2048).view(2, 1024))
    ids, _ = PCGrad(groups="token_class", num_groups=4).group_ids(v)
    assert torch.bincount(ids.flatten()).float().sub(512).abs().max() < 20
    v.targets.fill_(7)
    assert PCGrad(groups="token_class", num_groups=4).group_ids(v)[0].unique().numel() == 1


def test_token_frequency_groups_hold_equal_shares_of_the_text():
    v = view(vocabulary=1000)
    v.token_counts = (1e6 / torch.arange(1, 1001)).long()  # Zipf
    v.targets = torch.arange(1000).view(4, 250)
    v.losses = torch.zeros(4, 250)
    ids, _ = PCGrad(groups="token_frequency", num_groups=4).group_ids(v)
    shares = torch.zeros(4).scatter_add_(0, ids.flatten(), v.token_counts.float()) / v.token_counts.sum()
    assert (shares - 0.25).abs().max() < 0.07  # the most frequent id alone is 13 % of this text
    assert ids.flatten().tolist() == sorted(ids.flatten().tolist())
    v.token_counts = None
    with pytest.raises(ValueError, match="token counts"):
        PCGrad(groups="token_frequency").group_ids(v)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"groups": "random"}, "pcgrad.groups='random': allowed are sequence, domain"),
        ({"num_groups": 0}, "pcgrad.num_groups=0: must be a number from 1 to 256"),
        ({"num_groups": 2.5}, "pcgrad.num_groups=2.5: must be a whole number"),
        ({"scale": "norm"}, "allowed are matched, paper"),
        ({"order": "falling"}, "allowed are random, ascending"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PCGrad(**settings)
