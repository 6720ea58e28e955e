"""The tokens of a chat, as the engine reports them and as the model reads them."""

from typing import Any

import pytest

from tests.integration.serving.conftest import Server

HELLO = [{"role": "user", "content": "hello"}]
RENDERED = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def tokenize(engine: Server, **body: Any) -> Any:
    status, response = engine.post("/tokenize", {"model": "base", **body})
    assert status == 200, response
    return response


def test_a_chat_is_tokenized_as_the_model_reads_it(engine: Server) -> None:
    tokens = tokenize(engine, messages=HELLO, add_generation_prompt=True)
    assert (tokens["count"], tokens["max_model_len"]) == (len(tokens["tokens"]), 8192)
    body = {"model": "base", "tokens": tokens["tokens"]}
    assert engine.post("/detokenize", body) == (200, {"prompt": RENDERED})
    chat = {"model": "base", "messages": HELLO, "max_tokens": 1}
    assert engine.post("/v1/chat/completions", chat)[1]["usage"]["prompt_tokens"] == tokens["count"]


def test_a_developer_message_is_a_system_message_for_a_template_without_the_role(engine: Server) -> None:
    tokens = [
        tokenize(engine, messages=[{"role": role, "content": "count"}, *HELLO])["tokens"]
        for role in ("developer", "system", "user")
    ]
    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.parametrize(
    "function",
    [{"name": "f", "arguments": "{"}, {"arguments": "{}"}, {"name": "f", "arguments": "[" * 100_000}],
    ids=["half JSON", "no name", "deep JSON"],
)
def test_tool_calls_that_cannot_be_read_are_refused(engine: Server, function: dict[str, str]) -> None:
    call = {"id": "1", "type": "function", "function": function}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    status, body = engine.post("/tokenize", {"model": "base", "messages": messages})
    assert (status, "'tool_calls' of a message is not valid" in body["error"]["message"]) == (400, True)


def test_the_result_of_a_tool_may_be_any_text(engine: Server) -> None:
    result = {"role": "tool", "tool_call_id": "1", "content": "[" * 7000}
    assert tokenize(engine, messages=[*HELLO, result])["count"] > 0


def test_an_adapter_is_rendered_with_its_own_template(engine: Server) -> None:
    assert (
        tokenize(engine, messages=HELLO)["tokens"] != tokenize(engine, messages=HELLO, model="beta")["tokens"]
    )


def test_the_last_message_can_be_continued(engine: Server) -> None:
    conversation = [*HELLO, {"role": "assistant", "content": "하나 둘"}]
    tokens = tokenize(engine, messages=conversation, continue_final_message=True)
    text = engine.post("/detokenize", {"model": "base", "tokens": tokens["tokens"]})[1]["prompt"]
    assert text == RENDERED + "하나 둘"
    assert engine.chat("base", question="hello", max_tokens=3) != ""
    body = {
        "model": "base",
        "messages": conversation,
        "continue_final_message": True,
        "temperature": 0,
        "max_tokens": 9,
    }
    response = engine.post("/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]
    assert response.startswith(" 셋")


def test_token_strings_are_returned_on_request(engine: Server) -> None:
    assert tokenize(engine, prompt="a b", return_token_strs=True)["token_strs"] == ["a", "Ġ", "b"]
    assert tokenize(engine, prompt="")["tokens"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "messages": HELLO}, "prompt"),
        ({"messages": HELLO, "tools": []}, "tools"),
        (
            {"messages": HELLO, "add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
        ),
    ],
)
def test_an_invalid_request_to_tokenize_is_rejected(engine: Server, body: dict[str, Any], param: str) -> None:
    status, response = engine.post("/tokenize", {"model": "base", **body})
    assert (status, response["error"]["param"]) == (400, param)


def test_embeddings_are_rejected_with_a_hint(engine: Server) -> None:
    status, response = engine.post("/v1/embeddings", {"model": "base", "input": "x"})
    assert (status, response["error"]["code"]) == (400, "task_not_served")
    assert "deployment with `task: embed`" in response["error"]["message"]


def test_a_model_can_be_retrieved_by_its_name(engine: Server) -> None:
    status, model = engine.get("/v1/models/alpha")
    assert (status, model["id"], model["parent"], model["max_model_len"]) == (200, "alpha", "base", 8192)
    assert engine.get("/v1/models/nobody")[0] == 404


def test_values_of_other_clients_pass_if_they_change_nothing(engine: Server) -> None:
    neutral = {"repeat_penalty": 1.0, "typical_p": 1, "cache_prompt": True, "keep_alive": "5m", "mirostat": 0}
    neutral |= {"reasoning": {"effort": None}, "verbosity": "medium", "usage": {"include": True}}
    neutral |= {"thinking": {"type": "disabled"}, "parallel_tool_calls": True, "tool_choice": "auto"}
    assert engine.chat("base", **neutral) == engine.chat("base")
    body = {"model": "base", "messages": HELLO, "repeat_penalty": 1.1}
    status, response = engine.post("/v1/chat/completions", body)
    assert (status, response["error"]["param"]) == (400, "repeat_penalty")
