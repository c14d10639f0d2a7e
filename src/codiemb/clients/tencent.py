"""`TencentEmbeddingModel`: Youtu-Embedding behind Tencent Cloud's API, with the interface of a local model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import requests
from rich.console import Console
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.lkeap.v20240522.lkeap_client import LkeapClient

from codiemb.clients.answers import is_transient, read_outcomes, reason_of
from codiemb.clients.credentials import load_credential, redacted
from codiemb.clients.inputs import checked
from codiemb.clients.results import EmbeddingRequestError, Outcome, PartialEmbeddings
from codiemb.clients.sending import RequestFailed, Sender
from codiemb.instructions import instruction_for
from codiemb.progress_bars import counting_bars
from codiemb.prompts import TEMPLATES, InstructionTemplate, Side

BATCH_SIZE = 7  # texts of a request, the API's limit
MAX_CHARACTERS = 2000  # of a text, the API's limit
_LONG_JOB = 20  # requests; a job of more has a progress bar

# The API ignores its field Instruction for other models and for documents.
_READS_INSTRUCTION = ("youtu-embedding-llm-v1", "lke-text-embedding-v1")


class TencentEmbeddingModel:
    """Embeds texts with `GetEmbedding` of Tencent Cloud's LKEAP; satisfies `codiemb.interface.Embedder`.

    It may be used by several threads. Identical texts of one call are sent, and paid for, once.

    Args:
        model: as the API names it.
        secret_id, secret_key, token: credentials; from `TENCENTCLOUD_SECRET_ID`, `TENCENTCLOUD_SECRET_KEY` and
            `TENCENTCLOUD_TOKEN` if none is given. `token` comes with temporary credentials only.
        region: where the API runs.
        endpoint: host, or host:port; the SDK's own if None.
        protocol: `http` only for a gateway that you trust: texts and token then travel in the clear.
        template: how an instruction becomes a prompt, by name or itself.
        instruction_field: send the prompt of a query in the API's field `Instruction`, apart from the text, so that
            the service can keep it out of the pool. False puts it in front of the text, as document prompts always
            are; None chooses the field for the models that read it.
        truncate: cut texts that are too long at their end, and log how many. If False, they are an error.
        batch_size: texts of a request, up to 7.
        max_characters: of a text together with its prompt, up to 2000.
        dimension: of the vectors, to be checked; None takes that of the first vector that comes.
        requests_per_second: the limit of the account, which all its clients share.
        concurrency: requests under way at once.
        max_attempts: of a request that is throttled or meets a fault of server or network.
        backoff: s before the second attempt; doubles up to 30 s, plus a random part.
        timeout: s to connect, and s without a byte of the answer.
    Raises:
        ValueError: no credentials, or an argument is out of range.

    Attributes:
        dimension: of the vectors; None until one has come.
        total_tokens: what the API has counted, and bills, for this object.
    """

    def __init__(
        self,
        model: str = "youtu-embedding-llm-v1",
        *,
        secret_id: str | None = None,
        secret_key: str | None = None,
        token: str | None = None,
        region: str = "ap-guangzhou",
        endpoint: str | None = None,
        protocol: Literal["https", "http"] = "https",
        template: str | InstructionTemplate = "youtu",
        instruction_field: bool | None = None,
        truncate: bool = False,
        batch_size: int = BATCH_SIZE,
        max_characters: int = MAX_CHARACTERS,
        dimension: int | None = None,
        requests_per_second: float = 20,
        concurrency: int = 8,
        max_attempts: int = 6,
        backoff: float = 0.5,
        timeout: float = 60,
    ) -> None:
        if not 1 <= batch_size <= BATCH_SIZE or not 1 <= max_characters <= MAX_CHARACTERS:
            raise ValueError(
                f"batch_size={batch_size}, max_characters={max_characters}, but a request takes 1 to {BATCH_SIZE} "
                f"texts of 1 to {MAX_CHARACTERS} characters."
            )
        if endpoint is not None and "/" in endpoint:
            raise ValueError(f"endpoint={endpoint!r}, expected a host or host:port; protocol= says http or https.")
        if protocol not in ("https", "http"):
            raise ValueError(f"protocol={protocol!r}, expected https or http.")
        if isinstance(template, str) and template not in TEMPLATES:
            raise ValueError(f"template={template!r}, expected one of {', '.join(TEMPLATES)}.")
        if not timeout > 0:
            raise ValueError(f"timeout={timeout}, expected more than 0 s.")
        self.model = model
        self.template = TEMPLATES[template] if isinstance(template, str) else template
        self.instruction_field = model in _READS_INSTRUCTION if instruction_field is None else instruction_field
        self.truncate = truncate
        self.batch_size = batch_size
        self.max_characters = max_characters
        self.dimension = dimension
        self.total_tokens = 0
        self._lock = threading.Lock()  # of the two above
        self._sender = Sender(
            requests_per_second=requests_per_second,
            concurrency=concurrency,
            max_attempts=max_attempts,
            backoff=backoff,
        )
        http = HttpProfile(protocol=protocol, endpoint=endpoint, reqTimeout=timeout)
        self._client = LkeapClient(
            load_credential(secret_id, secret_key, token), region, ClientProfile(httpProfile=http)
        )

    def __repr__(self) -> str:
        host, protocol = self._client.request.host, self._client.profile.httpProfile.protocol
        shown = f"region={self._client.region!r}, endpoint={host!r}, protocol={protocol!r}"
        return f"{type(self).__name__}({self.model!r}, {shown})"

    def __copy__(self) -> TencentEmbeddingModel:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TencentEmbeddingModel:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            f"A {type(self).__name__} is not pickled, since its credentials must not be. Make one in each process, "
            "with the credentials in the environment."
        )

    # -- the interface of a model ----------------------------------------------------------------------------------

    def encode_queries(
        self, queries: str | Sequence[str], *, instruction: str | None = None, show_progress_bar: bool | None = None
    ) -> np.ndarray:
        """Embed queries, or the texts of a symmetric task.

        Args:
            instruction: a text or a task's name in `codiemb.instructions`; without one, the service reads queries as
                it does by default.
            show_progress_bar: on stderr; None shows it on a terminal for jobs of more than 20 requests.
        Returns: (texts, dim) float32 as the service gives them, (dim,) for a single text, (0, dim) for none (dim 0
            where it is not yet known).
        Raises:
            ValueError: a text is too long or blank, or the instruction is misspelt; nothing was sent.
            EmbeddingRequestError: some texts got no vector; it has the vectors of the others.
        """
        return self._encode("query", queries, instruction, show_progress_bar)

    def encode_passages(
        self, passages: str | Sequence[str], *, instruction: str | None = None, show_progress_bar: bool | None = None
    ) -> np.ndarray:
        """Embed passages; all else as `encode_queries`."""
        return self._encode("document", passages, instruction, show_progress_bar)

    def encode(
        self, inputs: str | Sequence[str], *, instruction: str | None = None, show_progress_bar: bool | None = None
    ) -> np.ndarray:
        """Embed texts that have no sides: as queries if there is an instruction, else as documents.

        The API recommends documents for symmetric tasks, but reads instructions of queries only.
        """
        return self._encode("query" if instruction else "document", inputs, instruction, show_progress_bar)

    def compute_similarity(
        self, queries: str | Sequence[str], passages: str | Sequence[str], *, instruction: str | None = None
    ) -> np.ndarray:
        """Cosine of each query with each passage, (queries, passages) float32."""
        rows = np.atleast_2d(self.encode_queries(queries, instruction=instruction))
        columns = np.atleast_2d(self.encode_passages(passages, instruction=instruction))
        return _unit(rows) @ _unit(columns).T

    def try_encode(
        self,
        texts: Sequence[str],
        *,
        side: Side = "document",
        instruction: str | None = None,
        show_progress_bar: bool | None = None,
    ) -> PartialEmbeddings:
        """Embed as many of `texts` as the service lets: a failed request is no error here, but part of the result.

        Raises:
            ValueError: as of `encode_queries`.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        text_type, prompt = self._prompt(side, instruction)
        in_field = prompt if text_type == "query" and self.instruction_field else ""
        in_text = "" if in_field else prompt
        rows: dict[str, int] = {}
        ready = checked(texts, prompt, max_characters=self.max_characters, truncate=self.truncate)
        inverse = [rows.setdefault(in_text + text, len(rows)) for text in ready]
        distinct = list(rows)
        batches = [distinct[start : start + self.batch_size] for start in range(0, len(distinct), self.batch_size)]

        def request(batch: Sequence[str]) -> list[Outcome]:
            return self._request(batch, text_type, in_field)

        with _progress(len(distinct), show_progress_bar, len(batches)) as on_progress:
            outcomes = self._sender.send(batches, request, on_progress)
        return PartialEmbeddings.of([outcomes[row] for row in inverse], self.dimension or 0)

    # -- before a request --------------------------------------------------------------------------------------------

    def _encode(
        self, side: Side, texts: str | Sequence[str], instruction: str | None, show_progress_bar: bool | None
    ) -> np.ndarray:
        single = isinstance(texts, str)
        partial = self.try_encode(texts, side=side, instruction=instruction, show_progress_bar=show_progress_bar)
        if partial.failures:
            raise EmbeddingRequestError(partial)
        return partial.vectors[0] if single else partial.vectors

    def _prompt(self, side: Side, instruction: str | None) -> tuple[Side, str]:
        """`TextType`, and the prompt that the text is read with."""
        if not instruction:
            return side, self.template.prompt(side)
        task = instruction_for(instruction)
        return "query" if task.symmetric else side, task.prompt(self.template, side)

    # -- one request -------------------------------------------------------------------------------------------------

    def _request(self, texts: Sequence[str], text_type: Side, instruction: str) -> list[Outcome]:
        parameters = {"Model": self.model, "Inputs": list(texts), "TextType": text_type}
        if instruction:
            parameters["Instruction"] = instruction
        try:
            # Not the SDK's GetEmbedding(): it turns every fault into one exception.
            response = self._client.call_json("GetEmbedding", parameters)["Response"]
            if "Error" in response:  # the SDK sees it only in a body of exactly application/json
                error = response["Error"]
                raise TencentCloudSDKException(error["Code"], error["Message"], response.get("RequestId"))
            outcomes, tokens = read_outcomes(response, len(texts))
        except (TencentCloudSDKException, requests.RequestException) as error:
            raise RequestFailed(redacted(reason_of(error)), transient=is_transient(error)) from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # the body has another form
            raise RequestFailed(redacted(f"malformed answer: {type(error).__name__}: {error}")) from None
        return self._accounted(outcomes, tokens)

    def _accounted(self, outcomes: list[Outcome], tokens: int) -> list[Outcome]:
        """Add up the tokens, and hold all vectors to one dimension."""
        with self._lock:
            self.total_tokens += tokens
            if self.dimension is None:
                self.dimension = next((len(one) for one in outcomes if not isinstance(one, str)), None)
        return [
            f"malformed answer: a vector of {len(one)} numbers, expected {self.dimension}"
            if not isinstance(one, str) and len(one) != self.dimension
            else one
            for one in outcomes
        ]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


@contextmanager
def _progress(texts: int, wanted: bool | None, batches: int) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    shown = console.is_terminal and batches > _LONG_JOB if wanted is None else wanted
    with counting_bars(console, shown=shown) as bar:
        task = bar.add_task("embed", total=texts)
        yield lambda count: bar.advance(task, count)
