"""Hostile and damaged files, each by a name: what a person who wishes ill, or a bad cable, would hand in."""

from hostile import archives, headers, images, metadata, nonsense, pickles, plans, recipes, states, weights


def all_samples(trap):
    """Every hostile file; where one runs code, the code springs the trap."""
    return [
        *pickles.pickles(trap),
        *archives.archives(),
        *headers.safetensors_files(),
        *weights.weights(),
        *metadata.metadata(trap),
        *plans.plans(),
        *recipes.recipes(trap),
        *images.images(),
        *states.states(trap),
        *nonsense.nonsense(),
    ]
