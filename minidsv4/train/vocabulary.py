"""More tokens for a trained model: new rows in the embedding, the head and the hash routers' tables.

V vocabulary, D width, A active experts.
"""

import torch

from minidsv4.model.model import Model

GROWN = ("embed.weight", "head.weight", "tid2eid")  # the tensors with a row a token, by the ends of their names


@torch.no_grad()
def with_vocabulary(model: Model, vocab_size: int, seed: int = 0) -> Model:
    """A copy of the model with so many tokens; on those it had, it computes what it computed.

    A new token begins as the average token: its rows in embedding and head are the mean of the others', the embedding's
    with a tenth of their spread as noise, so that new tokens differ. Hash routers draw its experts from the seed.

    raises  ValueError for fewer tokens than the model has
    """
    before = model.config.vocab_size
    if vocab_size < before:
        raise ValueError(
            f"with_vocabulary: vocab_size = {vocab_size} is less than the model's {before}; give that or more"
        )
    with torch.random.fork_rng(devices=[]):
        wider = Model(model.config.replace(vocab_size=vocab_size)).to(model.embed.weight)
    generator = torch.Generator().manual_seed(seed)
    grown = wider.state_dict()
    for name, tensor in model.state_dict().items():
        if name.endswith(GROWN):
            grown[name][:before] = tensor
        else:
            grown[name] = tensor
    rows = model.embed.weight
    noise = torch.randn(vocab_size - before, rows.shape[1], generator=generator, dtype=torch.float32)
    grown["embed.weight"][before:] = rows.mean(dim=0) + (0.1 * rows.std(dim=0) * noise.to(rows))
    grown["head.weight"][before:] = model.head.weight.mean(dim=0)
    wider.load_state_dict(grown)
    return wider.use(model.table)
