"""Chat templates that a stage can choose by name, for base models without one.

The special tokens are those that each family's instruct models publish in their tokenizer_config.json. Only
`qwen3` renders tools, calls and reasoning; the others refuse tools.
"""

from dataclasses import dataclass
from typing import Final

from trainers.configs.training import ChatTemplateName


@dataclass(frozen=True)
class NamedTemplate:
    """A template, and the tokens that a tokenizer must have for it, of which the first ends a turn.

    Without special tokens, the tokenizer's end-of-text token ends a turn. `follows_tokenizer` means that a
    conversation begins with the beginning-of-text token if the tokenizer adds one to texts.
    """

    special_tokens: tuple[str, ...]
    text: str
    follows_tokenizer: bool = False


# Tools change the format of a conversation, so a row with tools is refused rather than rendered without them.
_NO_TOOLS = "{%- if tools %}{{ raise_exception('this chat template does not support tools') }}{%- endif %}"
_BOS = "{{ bos_token }}"


def _own_turns(opening: str, closing: str, before: str = "", after: str = "") -> str:
    """Return a template in which every message is a turn; ROLE in `opening` is replaced by the role."""
    opened = opening.replace("ROLE", "' + message['role'] + '")
    turn = "{{ message['content'] + '" + closing + "' }}"
    return (
        f"{_NO_TOOLS}{before}{{%- for message in messages %}}{{{{ '{opened}' }}}}"
        f"{{%- if message['role'] == 'assistant' %}}{{%- generation %}}{turn}{{%- endgeneration %}}"
        f"{{%- else %}}{turn}{{%- endif %}}{{{{ '{after}' }}}}{{%- endfor %}}"
        f"{{%- if add_generation_prompt %}}{{{{ '{opening.replace('ROLE', 'assistant')}' }}}}{{%- endif %}}"
    )


def _in_user_turns(
    user: tuple[str, str],
    opening: str,
    assistant: tuple[str, str],
    after: str = "",
    generation_prompt: str = "",
) -> str:
    """Return a template in which a system message is the start of the first user turn.

    `user` and `assistant` are the texts before and after a message. `opening` precedes an assistant turn and
    carries no loss.
    """
    return (
        _NO_TOOLS + _BOS + "{%- if messages[0]['role'] == 'system' %}"
        "{%- set system = messages[0]['content'] + '\n\n' %}{%- set turns = messages[1:] %}"
        "{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
        "{%- for message in turns %}"
        "{%- if message['role'] != ('user' if loop.index0 is even else 'assistant') %}"
        "{{ raise_exception('user and assistant must take turns, after at most one system message') }}"
        "{%- endif %}"
        "{%- if message['role'] == 'user' %}"
        f"{{{{ '{user[0]}' + (system if loop.first else '') + message['content'] + '{user[1]}' }}}}"
        f"{{%- else %}}{{{{ '{opening}' }}}}{{%- generation %}}"
        f"{{{{ '{assistant[0]}' + message['content'] + '{assistant[1]}' }}}}{{%- endgeneration %}}"
        "{%- endif %}"
        f"{{{{ '{after}' }}}}{{%- endfor %}}"
        f"{{%- if add_generation_prompt %}}{{{{ '{generation_prompt}' }}}}{{%- endif %}}"
    )


# The calls and results have the form in which Qwen's models are trained; the instructions are our own.
_TOOLS_BEFORE = "You can call these tools:\\n<tools>"
_TOOLS_AFTER = (
    "\\n</tools>\\n\\nTo call a tool, write its name and its arguments as one JSON object:\\n<tool_call>\\n"
    '{"name": NAME, "arguments": ARGUMENTS}\\n</tool_call>'
)
_QWEN3 = (
    "{%- set ns = namespace(last=-1) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}"
    "{%- endfor %}"
    "{%- if tools %}{{ '<|im_start|>system\n' }}"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{%- endif %}"
    f"{{{{ '{_TOOLS_BEFORE}' }}}}{{%- for tool in tools %}}{{{{ '\n' + tool | tojson }}}}{{%- endfor %}}"
    f"{{{{ '{_TOOLS_AFTER}<|im_end|>\n' }}}}{{%- endif %}}"
    "{%- for m in messages %}"
    "{%- if m.role == 'system' and loop.first and tools %}"
    "{%- elif m.role == 'tool' %}"
    "{%- if loop.previtem is not defined or loop.previtem.role != 'tool' %}"
    "{{ '<|im_start|>user' }}{%- endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- if loop.nextitem is not defined or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{%- endif %}"
    "{%- elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{%- generation %}"
    # The reasoning before the last question is not shown to the model again.
    "{%- set content = m.content or '' %}"
    "{%- if loop.index0 > ns.last and m.reasoning_content %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}"
    "{%- elif loop.index0 < ns.last and '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{ content }}"
    "{%- for call in m.tool_calls or [] %}"
    "{%- if content or not loop.first %}{{ '\n' }}{%- endif %}"
    "{%- set arguments = call.function.arguments %}"
    "{{ '<tool_call>\n{\"name\": ' + call.function.name | tojson + ', \"arguments\": ' }}"
    "{{ arguments if arguments is string else arguments | tojson }}{{ '}\n</tool_call>' }}"
    "{%- endfor %}{{ '<|im_end|>' }}{%- endgeneration %}{{ '\n' }}"
    "{%- else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
# Words mark the turns, so that every tokenizer with an end-of-text token can render it.
_TRANSCRIPT = (
    _NO_TOOLS + "{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}{{ 'Assistant:' }}"
    "{%- generation %}{{ ' ' + m.content + eos_token }}{%- endgeneration %}{{ '\n' }}"
    "{%- elif m.role == 'user' %}{{ 'User: ' + m.content + '\n' }}"
    "{%- elif m.role == 'system' %}{{ 'System: ' + m.content + '\n' }}"
    "{%- else %}{{ raise_exception('this chat template has no role ' + m.role) }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ 'Assistant:' }}{%- endif %}"
)

TEMPLATES: Final[dict[ChatTemplateName, NamedTemplate]] = {
    ChatTemplateName.chatml: NamedTemplate(
        ("<|im_end|>", "<|im_start|>"), _own_turns("<|im_start|>ROLE\n", "<|im_end|>", after="\n")
    ),
    ChatTemplateName.qwen3: NamedTemplate(("<|im_end|>", "<|im_start|>"), _QWEN3),
    ChatTemplateName.llama3: NamedTemplate(
        ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        _own_turns("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>", before=_BOS),
    ),
    ChatTemplateName.gemma: NamedTemplate(
        ("<end_of_turn>", "<start_of_turn>"),
        _in_user_turns(
            ("<start_of_turn>user\n", "<end_of_turn>"),
            "<start_of_turn>model\n",
            ("", "<end_of_turn>"),
            after="\n",
            generation_prompt="<start_of_turn>model\n",
        ),
    ),
    ChatTemplateName.mistral: NamedTemplate(
        ("</s>", "[INST]", "[/INST]"), _in_user_turns(("[INST] ", "[/INST]"), "", (" ", "</s>"))
    ),
    ChatTemplateName.phi3: NamedTemplate(
        ("<|end|>", "<|user|>", "<|assistant|>"), _own_turns("<|ROLE|>\n", "<|end|>", after="\n")
    ),
    ChatTemplateName.transcript: NamedTemplate((), _TRANSCRIPT, follows_tokenizer=True),
}
