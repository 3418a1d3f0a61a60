import io

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset

from recipes.datasets import data_order
from recipes.finetune import evaluate, finetune

QUIET = Console(quiet=True)


class Brightness(Dataset):
    """Images of noise; the label of a pixel is whether its first channel is bright."""

    def __init__(self, count=12):
        self.images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], (self.images[index, 0] > 0.5).long()


def small_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(8, 2, 1))


class Fixed(nn.Module):
    """Predicts from the first channel with a rule, without a parameter."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, image):
        land = self.rule(image[:, 0]).float()
        return torch.stack([1 - land, land], dim=1)


def test_the_same_seed_gives_the_same_losses_and_another_seed_others():
    runs = []
    for other, seed in enumerate((3, 3, 4)):
        model = small_network()
        torch.manual_seed(100 + other)  # whatever came before must not matter, dropout included
        runs.append(finetune(model, Brightness(), steps=6, seed=seed, console=QUIET))
    assert len(runs[0]) == 6
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_the_loss_falls_and_the_score_rises():
    model = small_network()
    before = evaluate(model, Brightness())
    losses = finetune(model, Brightness(), steps=40, lr=0.05, console=QUIET)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert evaluate(model, Brightness()) > before + 0.2


def test_two_networks_with_the_same_seed_see_the_same_images_in_the_same_order():
    seen = []
    for model in (small_network(0), nn.Conv2d(3, 2, 1)):
        images = []
        model.register_forward_pre_hook(lambda _, args, images=images: images.append(args[0].clone()))
        finetune(model, Brightness(), steps=5, batch_size=5, seed=9, console=QUIET)
        seen.append(torch.cat(images))
    assert seen[0].shape == (25, 3, 8, 8)
    assert torch.equal(*seen)


def test_the_order_is_one_shuffled_pass_after_another():
    order = data_order(7, 17, seed=2)
    assert len(order) == 17
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert order[:7] != order[7:14]
    assert order == data_order(7, 17, seed=2)
    assert order != data_order(7, 17, seed=3)


def test_frozen_parameters_stay_and_the_others_move():
    model = small_network()
    model[0].requires_grad_(False)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    finetune(model, Brightness(), steps=3, console=QUIET)
    moved = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert moved == {"3.weight", "3.bias"}


def test_training_runs_in_training_mode_and_leaves_every_mode_and_the_random_state_as_they_were():
    model = small_network().eval()
    model[1].train()
    modes = []
    model.register_forward_pre_hook(lambda module, _: modes.append([m.training for m in module.modules()]))
    state = torch.get_rng_state()
    finetune(model, Brightness(), steps=2, console=QUIET)
    assert modes == [[True] * 5] * 2
    assert [m.training for m in model.modules()] == [False, False, True, False, False]
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_is_shown_with_its_label():
    text = io.StringIO()
    finetune(small_network(), Brightness(), steps=2, label="the plain one", console=Console(file=text, width=100))
    assert "the plain one" in text.getvalue()
    assert "2/2" in text.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 1, "batch_size": 13}, "batch_size must be from 1 to 12, .* got 13"),
        ({"steps": 1, "batch_size": 0}, "got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        finetune(small_network(), Brightness(), **arguments)


def test_a_network_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="requires a gradient, got none"):
        finetune(small_network().requires_grad_(False), Brightness(), steps=1)


def test_a_perfect_predictor_scores_1_and_a_wrong_one_0():
    assert evaluate(Fixed(lambda x: x > 0.5), Brightness()) == 1
    assert evaluate(Fixed(lambda x: x <= 0.5), Brightness()) == 0


def test_the_score_is_the_mean_of_the_classes_over_all_pixels_together():
    data = Brightness()
    truth = data.images[:, 0] > 0.5
    land = truth.float().mean().item()
    # Everything called land: of the union of land, `land` is right; of water, nothing.
    assert evaluate(Fixed(lambda x: x > -1), data) == pytest.approx(land / 2, abs=1e-6)
    # Not the mean of the images' own scores, and whatever the batches.
    guess = data.images[:, 0] > 0.3
    iou = [((guess == c) & (truth == c)).sum() / ((guess == c) | (truth == c)).sum() for c in (0, 1)]
    for batch_size in (1, 5, 12):
        found = evaluate(Fixed(lambda x: x > 0.3), data, batch_size=batch_size)
        assert found == pytest.approx(sum(iou).item() / 2, abs=1e-6)


def test_evaluation_runs_in_evaluation_mode_without_gradients_and_restores_the_mode():
    model = small_network().train()
    seen = []
    model.register_forward_hook(lambda module, _, out: seen.append((module[2].training, out.requires_grad)))
    first = evaluate(model, Brightness())
    assert set(seen) == {(False, False)}
    assert all(m.training for m in model.modules())
    assert evaluate(model, Brightness()) == first


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="at least one image, got none"):
        evaluate(small_network(), Brightness(0))
