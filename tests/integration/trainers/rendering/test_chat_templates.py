"""Chat templates in a child: the same text as transformers renders, and limits that no template escapes.

Equal texts are compared for templates of all families and every shape of chat. The bounds are tried with
templates that loop, allocate, leave the sandbox or are not templates at all.
"""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from trainers.modeling.load import load_tokenizer
from trainers.rendering.named_templates import TEMPLATES as NAMED
from trainers.rendering.template_proof import prove_folder, prove_template, read_templates, sample_chats
from trainers.rendering.template_renderer import Chat, ChatTemplateError, TemplateRenderer
from trainers.runtime.error_codes import ErrorCode

HANGS = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}"
ONE_LONG_OPERATION = "{{ 9 ** (9 ** 9) }}"
THREE_GIGABYTES = "{{ 'x' * 3000000000 }}"
DOUBLES = "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
LEAVES_SANDBOX = "{{ cycler.__init__.__globals__.os.popen('id').read() }}"
PRIVATE_ATTRIBUTE = "{% set ns = namespace(_x=1) %}{{ messages[0].content }}"
SYNTAX_ERROR = "{% for message in %}"
REJECTS_ALL = "{{ raise_exception('not today') }}"

HELPERS = (
    "{{ bos_token }}{%- for message in messages -%}\n  {%- if loop.first %}{% continue %}{% endif %}"
    "{{ message | tojson }}{{ dict(a=1).a }}{{ message.get('reasoning_content', '-') }}"
    "{% generation %}{{ message['content'] | trim }}{% endgeneration %}\n{% endfor %}"
    "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + tools | default([], true) | length %}{{ ns.n }}"
    "{{ strftime_now('%Y') }}"
)
TEMPLATES = {str(name): template.text for name, template in NAMED.items()} | {"helpers": HELPERS}
REASONING = Chat(
    [{"role": "user", "content": "a "}, {"role": "assistant", "content": " b", "thinking": "hm"}]
)
CONTINUED = Chat(
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "so "}], continue_final_message=True
)


@pytest.fixture(scope="module")
def renderer() -> Any:
    renderer = TemplateRenderer()
    yield renderer
    renderer.close()


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_child_renders_what_transformers_renders(name: str, renderer: TemplateRenderer) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>")
    tokenizer.chat_template = TEMPLATES[name]
    for chat in [*sample_chats(), REASONING, CONTINUED]:
        try:
            expected = tokenizer.apply_chat_template(
                list(chat.messages),
                tools=chat.tools,
                tokenize=False,
                add_generation_prompt=chat.add_generation_prompt,
                continue_final_message=chat.continue_final_message,
            )
        except Exception:
            expected = None
        rendered = renderer.render(TEMPLATES[name], chat, tokenizer.special_tokens_map)
        assert (None if rendered.rejected else rendered.text) == expected, chat


@pytest.mark.parametrize(
    ("template", "code"),
    [
        (HANGS, ErrorCode.template_too_slow),
        (ONE_LONG_OPERATION, ErrorCode.template_too_slow),
        (THREE_GIGABYTES, ErrorCode.template_too_large),
        (DOUBLES, ErrorCode.template_too_large),
        (LEAVES_SANDBOX, ErrorCode.template_unsafe),
        (PRIVATE_ATTRIBUTE, ErrorCode.template_unsafe),
        (SYNTAX_ERROR, ErrorCode.template_invalid),
        (REJECTS_ALL, ErrorCode.template_invalid),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_its_own_code(template: str, code: ErrorCode) -> None:
    with pytest.raises(ChatTemplateError) as raised:
        prove_template(template, {})
    assert raised.value.code is code


def test_the_next_chat_is_rendered_after_a_template_was_killed(renderer: TemplateRenderer) -> None:
    chat = Chat([{"role": "user", "content": "hello"}])
    for bad in (ONE_LONG_OPERATION, THREE_GIGABYTES):
        with pytest.raises(ChatTemplateError):
            renderer.render(bad, chat, {})
        assert renderer.render("{{ messages[0].content }}", chat, {}).text == "hello"


def test_a_child_that_cannot_be_started_is_started_for_the_next_chat(
    renderer: TemplateRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat([{"role": "user", "content": "a"}])
    renderer.close()
    with monkeypatch.context() as patch:
        patch.setattr("trainers.rendering.template_renderer.sys.executable", "/nowhere/python")
        with pytest.raises(FileNotFoundError):
            renderer.render("x", chat, {})
    assert renderer.render("x", chat, {}).text == "x"


def test_a_rejected_chat_has_the_reason_of_the_template(renderer: TemplateRenderer) -> None:
    chat = Chat([{"role": "user", "content": "hello"}])
    assert renderer.render(REJECTS_ALL, chat, {}).rejected == "not today"
    assert renderer.render("{{ 1 / 0 }}", chat, {}).rejected == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("expression", ["f.name + f.arguments", "f.arguments", "f.arguments | tojson"])
def test_tool_arguments_have_the_form_that_the_template_needs(
    expression: str, renderer: TemplateRenderer
) -> None:
    template = f"{{% set f = messages[0].tool_calls[0].function %}}{{{{ {expression} }}}}"
    call = {"function": {"name": "", "arguments": {"word": "한글"}}}
    chat = Chat([{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert renderer.render(template, chat, {}).text == '{"word": "한글"}'


def test_the_largest_body_of_a_request_is_rendered(renderer: TemplateRenderer) -> None:
    # One character beyond the Basic Multilingual Plane makes each of the text's characters take 4 bytes.
    content = "word " * (8 * 2**20 // 5) + "😀"
    text = renderer.render(TEMPLATES["chatml"], Chat([{"role": "user", "content": content}]), {}).text
    assert content in text


def test_the_templates_of_a_folder_are_read_from_every_file_that_transformers_reads(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    tokenizer.save_pretrained(tmp_path)
    assert read_templates(tmp_path) == tokenizer.chat_template
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ 3 }}"}')
    assert read_templates(tmp_path) == {"default": "{{ 3 }}", "tool_use": "{{ 2 }}"}


def test_a_stage_refuses_a_hanging_template_when_it_loads_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokenizer.chat_template = HANGS
    tokenizer.save_pretrained(tmp_path)
    for refuse in (load_tokenizer, lambda folder: prove_folder(Path(folder))):
        with pytest.raises(ChatTemplateError, match=str(tmp_path)) as raised:
            refuse(str(tmp_path))
        assert raised.value.code is ErrorCode.template_too_slow
