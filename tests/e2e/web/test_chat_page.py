"""The chat in a real browser: two answers stream side by side, are rated, stopped, and fail in place."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.e2e.platform import wait_until
from tests.e2e.web.conftest import Pages, find_violations
from tests.integration.app.web.seeded_serving import add_deployment
from tests.integration.serving.fake_engine import FakeEngine

ANSWERS = {
    "tuned": "정부는 2분기 수출이 1년 전보다 9.3% 늘었다고 발표했습니다. 반도체가 증가세를 이끌었습니다.",
    "base": "The government says: exports increase 9.3 percent in second quarter. Semiconductor is lead.",
}


class TalkingEngine(FakeEngine):
    """An engine with a tuned and a base model, whose answers are a few tokens long."""

    async def tuned(self, request: web.Request) -> web.StreamResponse:
        return await self._talk(request, "tuned")

    async def base(self, request: web.Request) -> web.StreamResponse:
        return await self._talk(request, "base")

    async def _talk(self, request: web.Request, model: str) -> web.StreamResponse:
        response = await self._stream(request)
        for word in ANSWERS[model].split(" "):
            chunk = {"id": f"chatcmpl-{model}", "choices": [{"index": 0, "delta": {"content": f"{word} "}}]}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            await asyncio.sleep(0.01)
        usage = {"prompt_tokens": 21, "completion_tokens": 34}
        await response.write(
            f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()
        )
        return response


@pytest.fixture(scope="module")
def engine(service: object) -> Iterator[TalkingEngine]:
    talking = TalkingEngine()
    for name, model in (
        ("ko-en-tuned", "tuned"),
        ("ko-en-base", "base"),
        ("slow", "endless"),
        ("ill", "broken"),
    ):
        add_deployment(name, address=talking.url, upstream_model=model)
    yield talking
    talking.close()


def test_two_models_answer_the_same_message_and_are_rated(
    pages: Pages, engine: TalkingEngine, tmp_path: Path
) -> None:
    page = pages.open("/chat?a=ko-en-tuned&b=ko-en-base&seed=7&system=Translate.")
    page.get_by_label("Message").fill("Exports grew 9.3% in the second quarter.")
    page.keyboard.press("Enter")
    page.wait_for_selector('.chat-answer[data-side="a"][aria-busy="false"]')
    page.get_by_role("button", name="A is better").click()
    page.wait_for_selector(".rating-note:text('Kept as a row')")
    assert page.locator(".answer-text").all_inner_texts() == [f"{ANSWERS['tuned']} ", f"{ANSWERS['base']} "]
    assert find_violations(page) == []
    pages.screenshot(page, "chat-pair-desktop-light-en")
    with page.expect_download() as download:
        page.locator("#preferences").click()
    row = json.loads(download.value.path().read_text())
    assert row["prompt"][0] == {"role": "system", "content": "Translate."}
    assert row["chosen"][0]["content"].startswith("정부는") and row["rejected"][0]["content"].startswith(
        "The"
    )
    assert {body["seed"] for body in engine.bodies} == {7}
    page.get_by_text("System text and sampling").focus()
    page.get_by_label("Temperature").fill("0.2")
    page.get_by_label("Temperature").blur()
    page.wait_for_url("**temperature=0.2*")
    assert pages.messages == []


def test_an_answer_can_be_stopped_and_an_error_is_shown_in_its_place(
    pages: Pages, engine: TalkingEngine
) -> None:
    page = pages.open("/chat?a=slow&b=ill", size="phone", theme="dark", language="ko")
    page.get_by_label("메시지").fill("안녕")
    page.get_by_role("button", name="보내기").click()
    page.wait_for_selector('.chat-answer[data-side="b"] .box.error')
    page.wait_for_selector('.chat-answer[data-side="a"] .answer-text:text("word word")')
    page.get_by_role("button", name="중지").click()
    page.wait_for_selector("text=직접 중지함")
    pages.screenshot(page, "chat-stopped-phone-dark-ko")
    assert find_violations(page) == []
    wait_until(lambda: engine.open_counts["endless"] == 0, 60, "the engine still answers")


def test_the_chat_is_accessible_at_every_width(pages: Pages, engine: TalkingEngine) -> None:
    pages.look("/chat?a=ko-en-tuned&b=ko-en-base&seed=7", "chat")
