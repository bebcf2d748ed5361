"""The two forms of a recipe: our own and mergekit's, each as a pydantic model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rlmerge._methods import find_method
from rlmerge.errors import RecipeError
from rlmerge.modifiers import MATCH_SCOPES, Modifiers, parse_lines, parse_match_norm, parse_treat
from rlmerge.recipe import (
    COMPATS,
    DURABILITIES,
    IO_WAYS,
    MAX_SEED,
    OVERFLOWS,
    Expert,
    Recipe,
    check_choice,
    check_integer,
    check_value,
    parse_dtype,
    parse_int_from,
    parse_size,
    suggestion,
)

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from rlmerge._yaml import Lines

__all__ = ["parse_recipe"]


def _text(value: object) -> object:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # a folder named 7 is a number to YAML
    return value


Text = Annotated[str, BeforeValidator(_text), Field(min_length=1, max_length=4096)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _OwnModel(_Form):
    path: Text
    parameters: dict[str, Any] = {}


def _own_model(value: object) -> object:
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, dict) and "model" in value and "path" not in value:
        return {"path" if key == "model" else key: item for key, item in value.items()}
    return value


class _OwnForm(_Form):
    method: Text
    models: list[Annotated[_OwnModel, BeforeValidator(_own_model)]] = Field(min_length=1)
    base: Text | None = None
    parameters: dict[str, Any] = {}
    treat: Any = None
    lines: Any = None
    match_norm: Any = None
    match_norm_scope: Any = None
    seed: int | None = None
    dtype: str | None = None
    compat: str | None = None
    output: Text | None = None
    shard_size: Any = None
    threads: int | None = None
    io: str | None = None
    durability: str | None = None
    strict: bool = False
    on_overflow: str | None = None
    int_from: Any = None
    verify_inputs: bool = False
    no_symlinks: bool = False


class _MergekitModel(_Form):
    model: Text
    parameters: dict[str, Any] = {}


def _mergekit_model(value: object) -> object:
    if isinstance(value, str):
        return {"model": value}
    return value


class _MergekitForm(_Form):
    merge_method: Text
    models: list[Annotated[_MergekitModel, BeforeValidator(_mergekit_model)]] = Field(min_length=1)
    base_model: Text | None = None
    parameters: dict[str, Any] = {}
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Any = None
    tokenizer: Any = None
    chat_template: Any = None


_REFUSED = {
    "slices": ("layers are not taken apart", "list whole models under `models:`"),
    "modules": ("modules are not merged apart", "list whole models under `models:`; all their tensors are merged"),
}
# Legal in mergekit, without effect on its result.
_IDLE = {"int8_mask": None, "density": {"task_arithmetic"}, "rescale": {"task_arithmetic"}}
# Method parameters that are often written one level too high.
_PARAMETERS = {"weight", "density", "lambda", "normalize", "epsilon", "t", "scale"}


class _Source:
    """Where the recipe came from: puts a line number in front of what is wrong with a key."""

    def __init__(self, lines: Lines, name: str) -> None:
        self.lines = lines
        self.name = name

    def at(self, *path: str | int) -> str:
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f"{self.name}:{line}"
        return self.name

    def error(self, message: str, *path: str | int, hint: str | None = None, code: str | None = None) -> RecipeError:
        return RecipeError(f"{self.at(*path)}: {message}", path=self.name, hint=hint, code=code)

    def blame(self, error: RecipeError, *path: str | int) -> RecipeError:
        """Put the line in front of an error about this key's value."""
        return self.error(error.message, *path, hint=error.hint, code=error.code)


def parse_recipe(data: object, lines: Lines, name: str) -> Recipe:
    """Make a recipe from the contents of a recipe file."""
    source = _Source(lines, name)
    if not isinstance(data, dict) or not data:
        msg = "a recipe is a mapping with the keys `method` and `models`"
        raise source.error(msg, hint="`rlmerge merge --help` shows one")
    if "merge_method" in data and "method" in data:
        msg = "both `method` (rlmerge's form) and `merge_method` (mergekit's form)"
        raise source.error(msg, "merge_method", hint="keep one of them")
    return _from_mergekit(data, source) if "merge_method" in data else _from_own(data, source)


_F = TypeVar("_F", bound=_Form)


def _validate(form: type[_F], data: dict[str, Any], source: _Source) -> _F:
    try:
        return form.model_validate(data)
    except ValidationError as error:
        problems = [_problem(form, details, source) for details in error.errors()]
    text = "\n".join(message for message, _ in problems)
    hint = next((hint for _, hint in problems if hint), None)
    raise RecipeError(text, path=source.name, hint=hint)


def _problem(form: type[_Form], details: ErrorDetails, source: _Source) -> tuple[str, str | None]:
    path = tuple(details["loc"])
    key = path[-1] if path else ""
    kind = details["type"]
    if kind == "extra_forbidden":
        fields = form.model_fields
        if len(path) > 1:
            fields = _OwnModel.model_fields if form is _OwnForm else _MergekitModel.model_fields
            if key in _PARAMETERS:
                return f"{source.at(*path)}: unknown key `{key}`", f"put `{key}` under `parameters:` of this model"
        elif key in _PARAMETERS:
            return f"{source.at(*path)}: unknown key `{key}`", f"put `{key}` under `parameters:`"
        near = suggestion(str(key), fields)
        return f"{source.at(*path)}: unknown key `{key}`", near or f"the keys are {', '.join(fields)}"
    if kind == "missing":
        hint = suggestion("method", _keys_beside(details)) if key == "method" else None
        return f"{source.at(*path[:-1])}: key `{key}` is missing", hint
    where = ".".join(str(part) for part in path)
    message = details["msg"][0].lower() + details["msg"][1:]
    return f"{source.at(*path)}: `{where}`: {message}", None


def _keys_beside(details: ErrorDetails) -> list[str]:
    """Return the keys that stand where one is missing."""
    given = details["input"]
    return [str(key) for key in given] if isinstance(given, dict) else []


def _values(given: dict[str, Any], source: _Source, *path: str | int) -> dict[str, Any]:
    values = {}
    for key, value in given.items():
        try:
            values[key] = check_value(key, value)
        except RecipeError as error:
            raise source.blame(error, *path, key) from None
    return values


def _from_own(data: dict[str, Any], source: _Source) -> Recipe:
    form = _validate(_OwnForm, data, source)
    recipe = Recipe(
        method=form.method,
        models=[
            Expert(model.path, _values(model.parameters, source, "models", at, "parameters"))
            for at, model in enumerate(form.models)
        ],
        base=form.base,
        parameters=_values(form.parameters, source, "parameters"),
        output=form.output,
        strict=form.strict,
        verify_inputs=form.verify_inputs,
        no_symlinks=form.no_symlinks,
    )
    key = ""
    modifiers = recipe.modifiers = Modifiers()
    try:
        if form.treat is not None:
            key = "treat"
            modifiers.treat = parse_treat(form.treat)
        if form.lines is not None:
            key = "lines"
            modifiers.lines = parse_lines(form.lines)
        if form.match_norm is not None:
            key = "match_norm"
            modifiers.match_norm = parse_match_norm(form.match_norm)
        if form.match_norm_scope is not None:
            key = "match_norm_scope"
            modifiers.match_norm_scope = check_choice(key, form.match_norm_scope, MATCH_SCOPES)
        if form.seed is not None:
            key = "seed"
            recipe.seed = check_integer(key, form.seed, 0, MAX_SEED)
        if form.dtype is not None:
            key = "dtype"
            recipe.dtype = parse_dtype(form.dtype)
        if form.compat is not None:
            key = "compat"
            recipe.compat = check_choice(key, form.compat, COMPATS)
        if form.shard_size is not None:
            key = "shard_size"
            recipe.shard_size = parse_size(form.shard_size)
        if form.threads is not None:
            key = "threads"
            recipe.threads = check_integer(key, form.threads, 1, 1024)
        if form.io is not None:
            key = "io"
            recipe.io = check_choice(key, form.io, IO_WAYS)
        if form.durability is not None:
            key = "durability"
            recipe.durability = check_choice(key, form.durability, DURABILITIES)
        if form.on_overflow is not None:
            key = "on_overflow"
            recipe.on_overflow = check_choice(key, form.on_overflow, OVERFLOWS)
        if form.int_from is not None:
            key = "int_from"
            recipe.int_from = parse_int_from(form.int_from)
    except RecipeError as error:
        raise source.blame(error, key) from None
    return recipe


def _from_mergekit(data: dict[str, Any], source: _Source) -> Recipe:
    for key, (what, hint) in _REFUSED.items():
        if key in data:
            msg = f"`{key}` of mergekit's form is not supported: {what}"
            raise source.error(msg, key, hint=hint)
    data = {**data, "models": _references(data.get("models"), source)}
    if "base_model" in data:
        data["base_model"] = _reference(data["base_model"], source, "base_model")
    form = _validate(_MergekitForm, data, source)
    _check_tokenizer(form, source)
    try:
        method = find_method(form.merge_method)
    except RecipeError as error:
        raise source.blame(error, "merge_method") from None

    recipe = Recipe(method=method.name, models=[], compat="mergekit", form="mergekit")
    for at, model in enumerate(form.models):
        given = _numbers(model.parameters, source, "models", at, "parameters")
        recipe.models.append(Expert(model.model, _drop_idle(given, method.name, recipe)))
    recipe.parameters = _drop_idle(_numbers(form.parameters, source, "parameters"), method.name, recipe)
    _place_base(form, method.base, recipe, source)
    for key, word in (("dtype", form.dtype), ("out_dtype", form.out_dtype)):
        if word is not None:
            try:
                recipe.dtype = parse_dtype(word)
            except RecipeError as error:
                raise source.blame(error, key) from None
    return recipe


def _references(models: object, source: _Source) -> object:
    """Flatten mergekit's long form of a model reference, ``model: {model: {path: ...}}``."""
    if not isinstance(models, list):
        return models
    flat = []
    for at, item in enumerate(models):
        if isinstance(item, dict) and "model" in item:
            item = {**item, "model": _reference(item["model"], source, "models", at, "model")}
        flat.append(item)
    return flat


def _reference(value: object, source: _Source, *path: str | int) -> object:
    if not isinstance(value, dict):
        return value
    if value.get("override_architecture") is not None:
        msg = "`override_architecture` of a model is not supported"
        raise source.error(msg, *path, "override_architecture", hint="remove it: tensors are matched by name and shape")
    model, lora = _place(value.get("model", value)), _place(value.get("lora"))
    return f"{model}+{lora}" if isinstance(model, str) and isinstance(lora, str) else model


def _place(part: object) -> object:
    """Flatten mergekit's ``{path: ..., revision: ...}``."""
    if not isinstance(part, dict) or not isinstance(part.get("path"), str):
        return part
    revision = part.get("revision")
    return f"{part['path']}@{revision}" if revision is not None else part["path"]


def _numbers(given: dict[str, Any], source: _Source, *path: str | int) -> dict[str, Any]:
    for key, value in given.items():
        if not isinstance(value, (list, dict)):
            continue
        filters = isinstance(value, dict) or any(isinstance(item, dict) for item in value)
        if not filters:
            msg = f"parameter `{key}`: a list is a gradient over the layers in mergekit's form, which is not supported"
        else:
            msg = f"parameter `{key}`: filters by tensor name, as in mergekit's form, are not supported"
        raise source.error(msg, *path, key, hint="give one number; it may differ between models, not between layers")
    return _values(given, source, *path)


def _drop_idle(given: dict[str, Any], method: str, recipe: Recipe) -> dict[str, Any]:
    kept = {}
    for key, value in given.items():
        methods = _IDLE.get(key, set())
        if methods is None or method in methods:
            note = f"`{key}` has no effect on the result of {method} and is ignored, as in mergekit"
            if note not in recipe.notes:
                recipe.notes.append(note)
        else:
            kept[key] = value
    return kept


def _place_base(form: _MergekitForm, rule: str, recipe: Recipe, source: _Source) -> None:
    base = form.base_model
    if base is None:
        if rule == "required" or recipe.method == "slerp":
            msg = f"`{recipe.method}` needs `base_model` in mergekit's form"
            raise source.error(msg, "merge_method", hint="add `base_model: PATH`")
        return
    listed = [expert for expert in recipe.models if expert.path == base]
    if rule == "none":
        if not listed:
            msg = f"`{recipe.method}` has no base, and `base_model` is not among the models"
            raise source.error(msg, "base_model", hint="remove `base_model`, or list it under `models:`")
        recipe.notes.append(f"`{recipe.method}` has no base: `base_model` is merged like the other models")
        return
    recipe.base = base
    recipe.models = [expert for expert in recipe.models if expert.path != base]
    if any(expert.parameters for expert in listed):
        recipe.notes.append(f"`{base}` is the base: the parameters given for it as a model are ignored, as in mergekit")


def _check_tokenizer(form: _MergekitForm, source: _Source) -> None:
    kept = "the output gets the tokenizer and chat template of the base, or of the first model"
    word = form.tokenizer_source
    if word is not None and word not in ("base", form.base_model):
        msg = f"`tokenizer_source: {word}` is not supported: {kept}"
        raise source.error(msg, "tokenizer_source", hint="merge models of one vocabulary, and remove this key")
    tokenizer = form.tokenizer
    if tokenizer is not None:
        extra = [k for k in tokenizer if k != "source"] if isinstance(tokenizer, dict) else ["tokenizer"]
        word = tokenizer.get("source", "union") if isinstance(tokenizer, dict) else tokenizer
        if extra:
            key = "tokenizer" if extra == ["tokenizer"] else f"tokenizer.{extra[0]}"
            msg = f"`{key}` is not supported: {kept}"
            raise source.error(msg, "tokenizer", *extra[:1], hint="merge models of one vocabulary, and remove this key")
        if word not in ("base", form.base_model):
            msg = f"`tokenizer.source: {word}` is not supported: {kept}"
            raise source.error(msg, "tokenizer", "source", hint="merge models of one vocabulary, and remove this key")
    if form.chat_template is not None:
        msg = f"`chat_template` is not supported: {kept}"
        raise source.error(msg, "chat_template", hint="remove this key, and edit the chat template of the output")
