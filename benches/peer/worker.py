"""The peer: the same work as a good team would write it today in Python with good libraries.

confluent-kafka, transformers' fast tokenizer, ONNX Runtime over the plain masked-language model, batches of 32 padded to their longest
row, qdrant-client with wait=true, a commit after each batch. It says on standard output, one JSON line a batch, how many documents are
durable.
"""

import argparse
import json
import sys
import time
import tomllib
import uuid

import numpy as np
import onnxruntime
from confluent_kafka import Consumer
from transformers import PreTrainedTokenizerFast

BATCH = 32
MAX_TOKENS = 512
MASKS = 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name in ("brokers", "topic", "group", "model", "tokenizer", "taxonomy"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--store", help="host:port of Qdrant's gRPC; without it points are built and dropped")
    parser.add_argument("--documents", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    worker = Worker(arguments)
    sys.stdout.write(json.dumps({"ready": time.time()}) + "\n")
    sys.stdout.flush()
    worker.consume(arguments.documents)


class Worker:
    def __init__(self, arguments):
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=arguments.tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", unk_token="[UNK]")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        self.session = onnxruntime.InferenceSession(arguments.model, options, providers=["CPUExecutionProvider"])
        with open(arguments.taxonomy, "rb") as file:
            taxonomy = tomllib.load(file)
        self.prompt = taxonomy["prompts"][0].replace("{label}", "[MASK]" * MASKS)
        words = [(label["name"], word) for label in taxonomy["labels"] for word in label["words"] if len(word) == MASKS]
        self.names = [name for name, _ in words]
        self.words = np.array([self.tokenizer.convert_tokens_to_ids(list(word)) for _, word in words])
        self.store = Store(arguments.store) if arguments.store else None
        self.consumer = Consumer(
            {"bootstrap.servers": arguments.brokers, "group.id": arguments.group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
        )
        self.consumer.subscribe([arguments.topic])

    def consume(self, wanted):
        done = 0
        while done < wanted:
            records = [record for record in self.consumer.consume(BATCH, timeout=1.0) if record.error() is None]
            if not records:
                continue
            points = self.tag([json.loads(record.value()) for record in records])
            if self.store:
                self.store.write(points)
            self.consumer.commit(asynchronous=True)
            done += len(points)
            sys.stdout.write(json.dumps({"documents": done, "at": time.time()}) + "\n")
            sys.stdout.flush()
        self.consumer.close()

    def tag(self, documents):
        texts = [document["title"] + "\n" + document["text"] if document["text"] else document["title"] for document in documents]
        rows = self.tokenizer([self.prompt + text for text in texts], truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="np")
        ids, mask = rows["input_ids"].astype(np.int64), rows["attention_mask"].astype(np.int64)
        logits, hidden = self.session.run(["logits", "last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
        masked = np.argwhere(ids == self.tokenizer.mask_token_id)
        scores = []
        for row in range(len(texts)):
            positions = masked[masked[:, 0] == row][:MASKS, 1]
            log_probs = log_softmax(logits[row, positions])
            scores.append(np.mean([log_probs[at, self.words[:, at]] for at in range(MASKS)], axis=0))
        kept = mask[:, :, None]
        embeddings = (hidden * kept).sum(1) / kept.sum(1)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        return [self.point(*each) for each in zip(documents, scores, embeddings, strict=True)]

    def point(self, document, scores, embedding):
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities)[:5]
        topics = [{"label": self.names[at], "probability": float(probabilities[at])} for at in order]
        payload = {
            "id": document["id"], "title": document["title"], "source": document["source"], "published_at": document["published_at"],
            "topic": topics[0]["label"], "probability": topics[0]["probability"], "topics": topics,
        }  # fmt: skip
        return str(uuid.uuid5(uuid.NAMESPACE_URL, document["id"])), embedding, payload


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class Store:
    """Qdrant over gRPC, one collection that exists already."""

    def __init__(self, address):
        from qdrant_client import QdrantClient, models

        host, port = address.rsplit(":", 1)
        self.client = QdrantClient(host=host, grpc_port=int(port), prefer_grpc=True, check_compatibility=False)
        self.models = models

    def write(self, points):
        structs = [self.models.PointStruct(id=id, vector=vector.tolist(), payload=payload) for id, vector, payload in points]
        self.client.upsert("bench", structs, wait=True)


if __name__ == "__main__":
    main()
