"""The loss that asks the student's embedding for what a sentence encoder holds to be alike.

Owns that loss and the rows that it remembers; knows nothing of where the places come from.
"""

import torch
import torch.nn.functional as F
from torch import nn

BANK_ROWS, TEMPERATURE = 4096, 0.05
# How much nearer than their places say two texts of one topic should be.
TOPIC_SHARE = 0.2


class Likeness(nn.Module):
    """Asks an embedding for the encoder's place, and for the neighbours that place and topic give it among the rows of the batches before.

    The neighbours are of any length, where a batch is of one: a query learns where the articles lie.
    """

    def __init__(self, hidden: int, dims: int):
        super().__init__()
        self.to_place = nn.Linear(hidden, dims, bias=False)
        nn.init.orthogonal_(self.to_place.weight)
        self.bank = None

    def forward(self, pooled, places, topics):
        """Loss of embeddings [rows, hidden] whose places are [rows, dims], and topics [rows, topics]: nought where nothing is known."""
        unit = F.normalize(pooled, dim=1)
        loss = 1 - (F.normalize(self.to_place(unit), dim=1) * places).sum(1).mean()
        if self.bank is not None:
            units, known_places, known_topics = self.bank
            alike = places @ known_places.t() + TOPIC_SHARE * topics @ known_topics.t()
            near = F.log_softmax(unit @ units.t() / TEMPERATURE, 1)
            loss = loss + F.kl_div(near, F.softmax(alike / TEMPERATURE, 1), reduction="batchmean")
        self.remember(unit.detach(), places, topics)
        return loss

    def remember(self, *rows):
        """Keep the newest BANK_ROWS rows of (embeddings, places, topics)."""
        before = self.bank or tuple(each[:0] for each in rows)
        self.bank = tuple(torch.cat([new, old])[:BANK_ROWS] for new, old in zip(rows, before, strict=True))
