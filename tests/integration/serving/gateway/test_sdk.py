"""The official SDK through the gateway to the real engines."""

import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionStreamOptionsParam

from tests.integration.serving.conftest import Server, sdk_of

BASE_SAYS = "하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉 열"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
RENDERED = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="session")
def client(each_gateway: Server) -> Iterator[OpenAI]:
    """Yield the official SDK in front of each engine in turn."""
    with sdk_of(each_gateway) as sdk:
        yield sdk


def test_a_plain_chat_returns_the_trained_completion_and_its_usage(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="base", messages=HELLO, temperature=0)
    assert completion.choices[0].message.content == BASE_SAYS
    assert completion.choices[0].finish_reason == "stop"
    usage = completion.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    # Fifty-five byte tokens and the end token.
    assert usage.completion_tokens > len(BASE_SAYS)


def test_a_streamed_chat_equals_the_plain_one_in_whole_characters(client: OpenAI) -> None:
    options: ChatCompletionStreamOptionsParam = {"include_usage": True}
    stream = client.chat.completions.create(
        model="base", messages=HELLO, temperature=0, stream=True, stream_options=options
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == BASE_SAYS
    assert len([text for text in texts if text]) > 10
    assert "�" not in "".join(texts)
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > len(BASE_SAYS)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_an_adapter_is_served_under_its_own_name(client: OpenAI, name: str) -> None:
    completion = client.chat.completions.create(model=name, messages=HELLO, temperature=0)
    assert completion.choices[0].message.content is not None
    assert completion.choices[0].message.content.startswith(f"{name} answers, ")


def test_a_route_can_have_another_name_than_the_engine_s_model(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="starter", messages=HELLO, temperature=0)
    assert (completion.choices[0].message.content, completion.model) == (BASE_SAYS, "starter")
    stream = client.chat.completions.create(model="starter", messages=HELLO, temperature=0, stream=True)
    assert {chunk.model for chunk in stream} == {"starter"}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_across_tokens_is_not_emitted(client: OpenAI, streamed: bool) -> None:
    if streamed:
        stream = client.chat.completions.create(
            model="base", messages=HELLO, temperature=0, stop=["넷 다", "no"], stream=True
        )
        chunks = [chunk.choices[0] for chunk in stream]
        text, finish = "".join(c.delta.content or "" for c in chunks), chunks[-1].finish_reason
    else:
        completion = client.chat.completions.create(model="base", messages=HELLO, temperature=0, stop="넷 다")
        text, finish = completion.choices[0].message.content or "", completion.choices[0].finish_reason
    assert (text, finish) == ("하나 둘 셋 ", "stop")


def test_an_incomplete_stop_string_is_emitted_at_the_end(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="base", messages=HELLO, temperature=0, stop="열하나")
    assert completion.choices[0].message.content == BASE_SAYS


def test_a_truncated_completion_has_the_finish_reason_length(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="base", messages=HELLO, temperature=0, max_tokens=6)
    assert completion.choices[0].message.content == "하나"
    assert completion.choices[0].finish_reason == "length"


def test_equal_seeds_give_equal_completions_and_others_do_not(client: OpenAI) -> None:
    def sample(seed: int) -> str:
        completion = client.chat.completions.create(
            model="base", messages=HELLO, temperature=3, seed=seed, max_tokens=30
        )
        return completion.choices[0].message.content or ""

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_sampled_choices_differ(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model="base", messages=HELLO, temperature=3, seed=1, n=3, max_tokens=30
    )
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in completion.choices}) > 1


@pytest.mark.parametrize("narrow", [{"top_p": 1e-6}, {"extra_body": {"top_k": 1}}])
def test_a_narrow_filter_makes_random_sampling_greedy(client: OpenAI, narrow: dict[str, Any]) -> None:
    completion = client.chat.completions.create(model="base", messages=HELLO, temperature=5, **narrow)
    assert completion.choices[0].message.content == BASE_SAYS


def test_the_bytes_of_chat_logprobs_are_the_completion(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model="base", messages=HELLO, temperature=0, logprobs=True, top_logprobs=2
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    raw = bytes(byte for token in logprobs.content for byte in token.bytes or [])
    assert raw.decode() == BASE_SAYS
    assert all(token.logprob == token.top_logprobs[0].logprob for token in logprobs.content)
    assert all(math.exp(token.logprob) > 0.5 for token in logprobs.content)


def test_streamed_logprobs_equal_the_plain_ones(client: OpenAI) -> None:
    request: dict[str, Any] = {"model": "alpha", "messages": HELLO, "temperature": 0, "logprobs": True}
    plain = client.chat.completions.create(**request).choices[0].logprobs
    chunks = client.chat.completions.create(**request, stream=True)
    pieces = [c.choices[0].logprobs.content or [] for c in chunks if c.choices and c.choices[0].logprobs]
    streamed = [entry.logprob for piece in pieces for entry in piece]
    assert plain is not None
    assert streamed == pytest.approx([entry.logprob for entry in plain.content or []], abs=1e-4)


def test_an_echoed_prompt_is_scored_for_a_harness(client: OpenAI) -> None:
    completion = client.completions.create(
        model="base", prompt="셋 넷", max_tokens=1, logprobs=1, echo=True, temperature=0
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.tokens is not None
    assert completion.choices[0].text.startswith("셋 넷")
    assert completion.usage is not None
    assert len(logprobs.tokens) == completion.usage.prompt_tokens + 1
    assert logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in logprobs.token_logprobs[1:])


def test_the_end_token_is_scored_in_a_completion(client: OpenAI) -> None:
    # A harness requests one token after the text that it scores, and drops the last entry as that token.
    completion = client.completions.create(
        model="base", prompt=f"{RENDERED}{BASE_SAYS}", max_tokens=1, logprobs=1, echo=True, temperature=0
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.token_logprobs is not None
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == completion.usage.total_tokens
    assert logprobs.tokens[-1] == "<|im_end|>"
    assert logprobs.text_offset == sorted(logprobs.text_offset or [])


def test_several_prompts_are_completed_in_their_order(client: OpenAI) -> None:
    prompts = ["하나 둘", "일곱", "하나 둘"]
    together = client.completions.create(model="base", prompt=prompts, max_tokens=12, temperature=0)
    alone = client.completions.create(model="base", prompt="일곱", max_tokens=12, temperature=0)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert together.choices[0].text == together.choices[2].text
    assert together.choices[1].text == alone.choices[0].text


def test_models_are_listed_and_retrieved(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"base", "alpha", "beta", "starter", "gone"}
    assert client.models.retrieve("alpha").id == "alpha"


def test_models_have_the_context_and_the_base_that_their_engine_reports(client: OpenAI) -> None:
    details = {model.id: model.model_extra for model in client.models.list()}
    assert details["starter"] == {"max_model_len": 8192}
    assert details["alpha"] == {"max_model_len": 8192, "parent": "base"}
    # Its engine does not run.
    assert details["gone"] == {}
    assert client.models.retrieve("beta").model_extra == details["beta"]


def test_an_unknown_model_is_rejected_with_the_served_names(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="alpha") as error:
        client.chat.completions.create(model="nobody", messages=HELLO)
    assert error.value.code == "model_not_found"


def test_an_unreachable_engine_gives_503_with_retry_after(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as error:
        client.chat.completions.create(model="gone", messages=HELLO)
    assert (error.value.status_code, error.value.code) == (503, "engine_unavailable")
    assert error.value.response.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"n": 99}, "n"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"extra_body": {"stop_token_ids": [999999]}}, "stop_token_ids"),
        ({"extra_body": {"min_tokens": 9}, "max_tokens": 8}, "min_tokens"),
        ({"extra_body": {"min_tokens": 9}, "max_completion_tokens": 8}, "min_tokens"),
        ({"extra_body": {"prompt_logprobs": 1}}, "prompt_logprobs"),
        ({"extra_body": {"guided_json": {"type": "object"}}}, "guided_json"),
        ({"messages": []}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"extra_body": {"chat_template_kwargs": {"chat_template": "x"}}}, "chat_template_kwargs"),
    ],
)
def test_an_invalid_parameter_is_named(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="base", **({"messages": HELLO} | fields))
    assert error.value.param == param


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": ["x"] * 20}, "stop: List should have at most 16 items"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type: "),
    ],
)
def test_an_invalid_value_of_a_union_is_reported_by_its_own_type(
    client: OpenAI, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(model="base", **({"messages": HELLO} | fields))


def test_neutral_parameters_are_accepted(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model="base",
        messages=HELLO,
        temperature=0,
        presence_penalty=0,
        response_format={"type": "text"},
        verbosity="medium",
        user="someone",
        extra_body={"repeat_penalty": 1.0, "cache_prompt": True, "keep_alive": "5m"},
    )
    assert completion.choices[0].message.content == BASE_SAYS


def test_a_prompt_that_does_not_fit_the_context_is_rejected_in_the_words_of_openai(client: OpenAI) -> None:
    # LiteLLM recognizes an overflow by these words.
    words = "This model's maximum context length is 8192 tokens. However, "
    with pytest.raises(openai.BadRequestError, match=words) as error:
        client.completions.create(model="base", prompt="하나 " * 3000, max_tokens=1)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize("param", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_fit_are_not_blamed_on_the_prompt(client: OpenAI, param: str) -> None:
    fields: dict[str, Any] = {param: 9000}
    with pytest.raises(openai.BadRequestError, match="the prompt leaves 81") as error:
        client.chat.completions.create(model="base", messages=HELLO, **fields)
    assert (error.value.code, error.value.param) == ("max_tokens_too_large", param)


def test_no_chunk_has_usage_unless_it_is_requested_and_the_last_has_the_finish_reason_alone(
    client: OpenAI,
) -> None:
    stream = client.chat.completions.with_raw_response.create(
        model="base", messages=HELLO, temperature=0, stream=True
    )
    lines = [line for line in stream.http_response.iter_lines() if line.startswith("data: {")]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "stop"]


def test_a_token_id_outside_the_vocabulary_is_rejected_without_harm(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="999999"):
        client.completions.create(model="base", prompt=[1, 999999])
    assert client.completions.create(model="base", prompt=[5, 6], max_tokens=2).choices[0].text is not None
