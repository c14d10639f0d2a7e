"""The Matryoshka wrapper, against sentence-transformers' loss on the same embeddings."""

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import nn

from codiemb.losses import cosent_loss, info_nce, leading, matryoshka

WIDTH = 24


class Given(nn.Module):
    """A model whose embeddings are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.similarity_fn_name = "cosine"

    def forward(self, features):
        return {"sentence_embedding": features["sentence_embedding"]}

    def get_embedding_dimension(self):
        return WIDTH


def theirs(loss, columns, labels, weights):
    wrapped = MatryoshkaLoss(loss.model, loss, list(weights), list(weights.values()))
    return wrapped([{"sentence_embedding": column} for column in columns], labels)


def ours(objective, columns, weights):
    return matryoshka(objective, torch.stack(columns), weights)


def columns():
    torch.manual_seed(3)
    return [nn.functional.normalize(torch.randn(7, WIDTH, dtype=torch.float32), dim=-1) for _ in range(2)]


CASES = {
    "retrieval": (
        lambda: MultipleNegativesRankingLoss(Given(), scale=20.0),
        lambda pair: info_nce(pair[0], pair[1][:, None], temperature=0.05),
    ),
    "similarity": (
        lambda: CoSENTLoss(Given(), scale=20.0),
        lambda pair: cosent_loss((pair[0] * pair[1]).sum(-1), torch.arange(7.0), temperature=0.05),
    ),
}


@pytest.mark.parametrize("weights", [{WIDTH: 1.0, 8: 1.0, 3: 1.0}, {WIDTH: 2.0, 5: 0.25}, {4: 1.0}], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_it_is_sentence_transformers_loss(name, weights):
    make, objective = CASES[name]
    results = []
    for compute in (
        lambda pair: theirs(make(), pair, torch.arange(7.0), weights),
        lambda pair: ours(objective, pair, weights),
    ):
        pair = [column.requires_grad_() for column in columns()]
        loss = compute(pair)
        loss.backward()
        results.append((loss.detach(), [column.grad for column in pair]))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-5)


def test_a_part_has_unit_length_and_leaves_the_rest_without_gradient():
    embeddings = torch.randn(5, WIDTH, requires_grad=True)
    part = leading(embeddings, 6)
    torch.testing.assert_close(part.norm(dim=-1), torch.ones(5))
    part[:, 0].sum().backward()
    assert not embeddings.grad[:, 6:].any()
    assert embeddings.grad[:, :6].any()


@pytest.mark.parametrize("weights", [{}, {WIDTH + 1: 1.0}, {0: 1.0}])
def test_widths_that_are_not_there_are_refused(weights):
    with pytest.raises(ValueError, match=f"from 1 to {WIDTH}"):
        matryoshka(torch.sum, torch.ones(2, WIDTH), weights)
