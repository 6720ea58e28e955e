"""What a chat becomes before the model reads it, as the engine itself tells."""

from typing import Any

import pytest

from tests.integration.serving.conftest import Server

HELLO = [{"role": "user", "content": "hello"}]
SPELT = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def tokenized(engine: Server, **body: Any) -> Any:
    status, answer = engine.post("/tokenize", {"model": "base", **body})
    assert status == 200, answer
    return answer


def test_a_chat_is_tokenized_as_it_is_read(engine: Server) -> None:
    told = tokenized(engine, messages=HELLO, add_generation_prompt=True)
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), 8192)
    body = {"model": "base", "tokens": told["tokens"]}
    assert engine.post("/detokenize", body) == (200, {"prompt": SPELT})
    chat = {"model": "base", "messages": HELLO, "max_tokens": 1}
    assert engine.post("/v1/chat/completions", chat)[1]["usage"]["prompt_tokens"] == told["count"]


def test_a_developer_is_the_system_to_a_template_that_knows_no_developer(engine: Server) -> None:
    told = [
        tokenized(engine, messages=[{"role": role, "content": "count"}, *HELLO])["tokens"]
        for role in ("developer", "system", "user")
    ]
    assert told[0] == told[1] != told[2]


def test_an_adapter_is_rendered_with_its_own_template(engine: Server) -> None:
    assert (
        tokenized(engine, messages=HELLO)["tokens"]
        != tokenized(engine, messages=HELLO, model="beta")["tokens"]
    )


def test_a_last_message_may_be_continued(engine: Server) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "하나 둘"}]
    told = tokenized(engine, messages=begun, continue_final_message=True)
    text = engine.post("/detokenize", {"model": "base", "tokens": told["tokens"]})[1]["prompt"]
    assert text == SPELT + "하나 둘"
    assert engine.chat("base", question="hello", max_tokens=3) != ""
    body = {
        "model": "base",
        "messages": begun,
        "continue_final_message": True,
        "temperature": 0,
        "max_tokens": 9,
    }
    answer = engine.post("/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]
    assert answer.startswith(" 셋")


def test_token_strings_are_given_when_they_are_wanted(engine: Server) -> None:
    assert tokenized(engine, prompt="a b", return_token_strs=True)["token_strs"] == ["a", "Ġ", "b"]
    assert tokenized(engine, prompt="")["tokens"] == []


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
def test_what_cannot_be_tokenized_is_refused(engine: Server, body: dict[str, Any], param: str) -> None:
    status, answer = engine.post("/tokenize", {"model": "base", **body})
    assert (status, answer["error"]["param"]) == (400, param)


def test_embeddings_are_refused_with_advice(engine: Server) -> None:
    status, answer = engine.post("/v1/embeddings", {"model": "base", "input": "x"})
    assert status == 404
    assert "embedding model" in answer["error"]["message"]
