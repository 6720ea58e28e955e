"""Chat templates of each family, reduced to the calls of one message.

They render what the families' own templates render for the same calls.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

Call = tuple[str, dict[str, Any]]

QWEN = """{%- for c in calls %}{% if not loop.first %}{{ '\\n' }}{% endif %}
{{- '<tool_call>\\n{"name": "' + c.name + '", "arguments": ' }}
{{- c.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}"""
XML = """{%- for c in calls %}
{{- '\\n<tool_call>\\n<function=' + c.name + '>\\n' }}
{%- for name, value in c.arguments.items() %}
{{- '<parameter=' + name + '>\\n' }}
{{- value if value is string else value | tojson }}{{ '\\n</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}
{%- endfor %}"""
GLM = """{%- for c in calls %}
{{- '\\n<tool_call>' + c.name + '\\n' }}
{%- for name, value in c.arguments.items() %}
{{- '<arg_key>' + name + '</arg_key>\\n<arg_value>' }}
{{- value if value is string else value | tojson }}{{ '</arg_value>\\n' }}
{%- endfor %}
{{- '</tool_call>' }}
{%- endfor %}"""
PYTHON_VALUE = """{% macro write(value) %}
{%- if value is none %}None{% elif value is sameas true %}True{% elif value is sameas false %}False
{%- elif value is mapping %}{{ '{' }}{% for name, one in value.items() %}{{ name | tojson }}: {{ write(one) }}
{%- if not loop.last %}, {% endif %}{% endfor %}{{ '}' }}
{%- elif value is iterable and value is not string %}[{% for one in value %}{{ write(one) }}
{%- if not loop.last %}, {% endif %}{% endfor %}]
{%- else %}{{ value | tojson }}{% endif %}{% endmacro %}"""
PYTHON_CALL = """{{ c.name }}({% for name, value in c.arguments.items() %}{{ name }}={{ write(value) }}
{%- if not loop.last %}, {% endif %}{% endfor %})"""
PYTHON_LIST = (
    PYTHON_VALUE
    + "{{ '[' }}{% for c in calls %}"
    + PYTHON_CALL
    + "{% if not loop.last %}, {% endif %}{% endfor %}]"
)
GEMMA_VALUE = """{% macro write(value) %}
{%- if value is none %}null{% elif value is sameas true %}true{% elif value is sameas false %}false
{%- elif value is string %}{{ QUOTE }}{{ value }}{{ QUOTE }}
{%- elif value is mapping %}{{ '{' }}{% for name, one in value | dictsort %}{{ name }}:{{ write(one) }}
{%- if not loop.last %},{% endif %}{% endfor %}{{ '}' }}
{%- elif value is iterable %}[{% for one in value %}{{ write(one) }}
{%- if not loop.last %},{% endif %}{% endfor %}]
{%- else %}{{ value }}{% endif %}{% endmacro %}"""
GEMMA = (
    GEMMA_VALUE
    + "{% for c in calls %}{{ OPEN }}call:{{ c.name }}{{ write(c.arguments) }}{{ CLOSE }}{% endfor %}"
)


def json_list(begin: str, end: str, separator: str, arguments: str = "arguments") -> str:
    """Return a template of calls that are objects of JSON."""
    head = f"""{{{{ '{{"name": "' + c.name + '", "{arguments}": ' }}}}"""
    call = head + "{{ c.arguments | tojson }}{{ '}' }}"
    between = f"{{% if not loop.last %}}{{{{ '{separator}' }}}}{{% endif %}}"
    return f"{{{{ '{begin}' }}}}{{% for c in calls %}}{call}{between}{{% endfor %}}{{{{ '{end}' }}}}"


def named(before: str, between: str, after: str, begin: str = "", end: str = "", separator: str = "") -> str:
    """Return a template of calls that are a name and an object of JSON."""
    call = f"{{{{ '{before}' + c.name + '{between}' }}}}{{{{ c.arguments | tojson }}}}{{{{ '{after}' }}}}"
    more = f"{{% if not loop.last %}}{{{{ '{separator}' }}}}{{% endif %}}"
    return f"{{{{ '{begin}' }}}}{{% for c in calls %}}{call}{more}{{% endfor %}}{{{{ '{end}' }}}}"


def gemma(opening: str, closing: str, quote: str) -> str:
    """Return a template in Gemma's notation with other markers."""
    names = {"OPEN": opening, "CLOSE": closing, "QUOTE": quote}
    template = GEMMA
    for name, text in names.items():
        template = template.replace(f"{{{{ {name} }}}}", f"{{{{ '{text}' }}}}")
    return template


@dataclass(frozen=True)
class CallForm:
    """How one family's template writes calls; `sign` is what else it contains."""

    body: str
    sign: str = ""

    @property
    def template(self) -> str:
        """The template from which the family is found."""
        return self.sign + self.body

    def write(self, calls: Sequence[Call]) -> str:
        """Return the text of calls."""
        given = [{"name": name, "arguments": arguments} for name, arguments in calls]
        return _compile(self.body).render(calls=given)


@lru_cache
def _compile(body: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    # Without the escapes of HTML, as in transformers.
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    return environment.from_string(body)


BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
FORMS = {
    "qwen": CallForm(QWEN),
    "qwen3_coder": CallForm(XML),
    "seed_oss": CallForm(XML.replace("tool_call>", "seed:tool_call>")),
    "glm45": CallForm(GLM),
    "glm47": CallForm(GLM.replace("\\n", "")),
    "llama3": CallForm(json_list("", "", "; ", "parameters"), "<|python_tag|>"),
    "pythonic": CallForm(PYTHON_LIST, "[func_name1(params_name1=params_value1)]"),
    "llama4_pythonic": CallForm(
        PYTHON_LIST.replace("'['", "'<|python_start|>['") + "<|python_end|>", "[func_name1(param1=value1)]"
    ),
    "lfm2": CallForm(PYTHON_LIST.replace("'['", "'<|tool_call_start|>['") + "<|tool_call_end|>"),
    "olmo3": CallForm(
        PYTHON_VALUE
        + "{{ '<function_calls>\\n' }}{% for c in calls %}"
        + PYTHON_CALL
        + "{{ '\\n' }}{% endfor %}</function_calls>"
    ),
    "gemma4": CallForm(gemma("<|tool_call>", "<tool_call|>", '<|"|>')),
    "functiongemma": CallForm(gemma("<start_function_call>", "<end_function_call>", "<escape>")),
    "mistral list": CallForm(json_list("[TOOL_CALLS][", "]", ", ")),
    "mistral named": CallForm(named("[TOOL_CALLS]", "[ARGS]", "")),
    "phi4_mini": CallForm(json_list("functools[", "]", ", ")),
    "granite": CallForm(json_list("<|tool_call|>[", "]", ", ")),
    "deepseek_v3": CallForm(
        named(f"{CALL_BEGIN}function{SEPARATOR}", "\\n```json\\n", f"\\n```{CALL_END}", BEGIN, END, "\\n")
    ),
    "deepseek_v31": CallForm(named(CALL_BEGIN, SEPARATOR, CALL_END, BEGIN, END)),
}
