"""The session that pays: one tool call, driven by the same conversation as an HTTP request."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

import mcp
from anyio import CancelScope, to_thread
from mcp import types
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from x402_mask._drive.perform import AsyncPerformer, Patience, prepare
from x402_mask._drive.pump import AsyncPump
from x402_mask._flow import conversation
from x402_mask._flow.effects import (
    PAYLOAD_BYTES_MAX,
    Ask,
    Content,
    Fetch,
    Fingerprint,
    Payload,
    ReadBody,
    Reply,
)
from x402_mask._flow.records import Call, CallState, operation_key
from x402_mask._ledger.carrier import Carrier
from x402_mask._models import Receipt
from x402_mask._payer import buyer_of
from x402_mask._services import origin_of, tool_url
from x402_mask._wire import strict_json
from x402_mask._wire.x402 import TOKEN_HEADER
from x402_mask.errors import PaymentError
from x402_mask.mcp._answers import (
    PAYMENT_META,
    TOKEN_ARGUMENT,
    Heard,
    heard,
    heard_error,
    names_place,
    names_service,
)
from x402_mask.mcp._market import Market
from x402_mask.mcp._weight import check_size, weight

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mcp.shared.dispatcher import ProgressFnT

    from x402_mask._flow.effects import Effect, Fetched
    from x402_mask._flow.records import Verdict
    from x402_mask._payer import Payer

log = logging.getLogger("x402_mask")

Result = types.CallToolResult | types.InputRequiredResult | types.Result
"""What a tool call may end in, for callers that allow more than a ``CallToolResult``."""
Proof = tuple[str, str]

T = TypeVar("T")

_AT_ONCE: Final = 128 * 1024
"""Arguments of this weight are read on an event loop: it takes about a millisecond."""

_RECEIPT: Final = "x402_mask"
_REFUSAL: Final = "x402_mask_refusal"
_RESULTS: Final[TypeAdapter[Any]] = TypeAdapter(types.CallToolResult | types.InputRequiredResult)


def receipt_of(result: types.Result) -> Receipt | None:
    """What was paid for *result*, or ``None``.  It lives in ``result.meta["x402_mask"]``."""
    found = (result.meta or {}).get(_RECEIPT)
    return found if isinstance(found, Receipt) else None


class PaidSession:
    """An ``mcp.ClientSession`` whose tool calls are paid; everything else is the session's own.

    Tool ``mask_refinement`` is service ``mask-refinement``: caps, ledger and operations are those
    of the payer, shared with its HTTP clients.

    Args:
        session: the session, over any transport; an ``mcp.Client`` will do as well.
        payer: decides and pays.
        origin: whom the session talks to: ``"https://host"`` (or the URL of its MCP endpoint), or
            ``"mcp:<name>"`` for a server on stdio.  Nothing is paid unless it is in the payer's
            ``origins``.

    Raises:
        ValueError: *origin* is neither.
    """

    def __init__(self, session: mcp.ClientSession | mcp.Client, payer: Payer, origin: str) -> None:
        prepare()
        self._session = session
        self._place = origin
        self.payer = payer
        self.origin = origin_of(origin)

    def __getattr__(self, name: str) -> Any:
        if name == "_session":  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self._session, name)

    @overload
    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        read_timeout_seconds: float | None = None,
        progress_callback: ProgressFnT | None = None,
        *,
        operation: str | None = None,
        meta: types.RequestParamsMeta | None = None,
        input_responses: types.InputResponses | None = None,
        request_state: str | None = None,
        allow_input_required: Literal[False] = False,
        allow_claimed: Literal[False] = False,
    ) -> types.CallToolResult: ...

    @overload
    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        read_timeout_seconds: float | None = None,
        progress_callback: ProgressFnT | None = None,
        *,
        operation: str | None = None,
        meta: types.RequestParamsMeta | None = None,
        input_responses: types.InputResponses | None = None,
        request_state: str | None = None,
        allow_input_required: bool = False,
        allow_claimed: bool = False,
    ) -> Result: ...

    async def call_tool(  # noqa: PLR0913  # the parameters of ClientSession.call_tool, and ours
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        read_timeout_seconds: float | None = None,
        progress_callback: ProgressFnT | None = None,
        *,
        operation: str | None = None,
        meta: types.RequestParamsMeta | None = None,
        input_responses: types.InputResponses | None = None,
        request_state: str | None = None,
        allow_input_required: bool = False,
        allow_claimed: bool = False,
    ) -> Result:
        """Call a tool; pay for it if it must be and may be.

        Parameters are those of ``ClientSession.call_tool``, and *operation*: the caller's own key
        of what must be paid once.  *read_timeout_seconds* applies to every leg.  A result that was
        paid for is handed back even where it does not fit the tool's output schema;
        :func:`receipt_of` tells what it cost.

        Raises:
            PaymentError: it may not be paid, or could not be; ``.response`` is the tool's answer.
            mcp.MCPError: as the session raises it; after a payment with a note that names it.
        """
        key = operation_key(operation)
        check_size(arguments)
        extra = {"input_responses": input_responses, "request_state": request_state}

        async def send(proof: Proof | None) -> Result:
            request = _request(name, arguments, meta, proof, extra)
            return await self._send(request, read_timeout_seconds, progress_callback)

        url, carrier = tool_url(self._place, name), Carrier()
        has_proof = PAYMENT_META in (meta or {}) or TOKEN_ARGUMENT in (arguments or {})
        call = Call(
            method="tools/call",
            url=url,
            state=CallState(origin=self.origin, url=url, tool=name),
            key=key,
            wait_s=read_timeout_seconds,
            has_proof=has_proof,
            carrier=carrier,
        )
        paid = _ToolCall(self.payer, call, name, arguments, send)
        allowed = (allow_input_required, allow_claimed)
        return await carrier.follow(self._paid(carrier, paid, name, allowed))

    async def _paid(
        self, carrier: Carrier, paid: _ToolCall, name: str, allowed: tuple[bool, bool]
    ) -> Result:
        """Make the call; *allowed*: results that want more input, and claimed ones."""
        handed = False
        carrier.handed = lambda: handed
        try:
            result = await paid.run()
            await self._check(name, result, allowed)
            return (result, handed := True)[0]  # in one step: see Carrier
        except BaseException as exc:
            await paid.failed(exc)
            raise

    async def _check(self, name: str, result: Result, allowed: tuple[bool, bool]) -> None:
        """Raise what ``ClientSession.call_tool`` would raise for this result."""
        if not isinstance(result, types.CallToolResult):
            if not allowed[_is_claimed(result)]:
                raise _unexpected(name, result)
        elif _is_unpaid_answer(result):
            await self._inner.validate_tool_result(name, result)

    @property
    def _inner(self) -> mcp.ClientSession:
        return self._session.session if isinstance(self._session, mcp.Client) else self._session

    async def _send(
        self,
        request: types.CallToolRequest,
        read_timeout_seconds: float | None,
        progress_callback: ProgressFnT | None,
    ) -> Result:
        """One ``tools/call``, without the validation that would throw away what was paid for."""
        results = getattr(self._inner, "_call_tool_adapter", _RESULTS)  # knows its extensions
        answer: Result = await self._inner.send_request(
            request,
            results,
            request_read_timeout_seconds=read_timeout_seconds,
            progress_callback=progress_callback,
        )
        return answer


def _is_claimed(result: Result) -> bool:
    return not isinstance(result, (types.CallToolResult, types.InputRequiredResult))


def _is_unpaid_answer(result: types.CallToolResult) -> bool:
    """Whether nothing is lost if this result is refused for not fitting the tool's schema."""
    meta = result.meta or {}
    return not result.is_error and _RECEIPT not in meta and _REFUSAL not in meta


def _unexpected(name: str, result: Result) -> RuntimeError:
    """What ``ClientSession.call_tool`` raises for results that the caller did not ask for."""
    claimed = _is_claimed(result)
    wanted = "allow_claimed" if claimed else "allow_input_required"
    error = RuntimeError(
        f"tool {name} answered with {type(result).__name__}; pass {wanted}=True to receive it"
    )
    receipt = receipt_of(result)
    if receipt is not None:
        error.add_note(f"x402_mask: payment {receipt.payment_id} was sent for it")
    return error


def _request(
    name: str,
    arguments: dict[str, Any] | None,
    meta: types.RequestParamsMeta | None,
    proof: Proof | None,
    extra: dict[str, Any],
) -> types.CallToolRequest:
    """The call, with its proof as MCP carries it: an object in ``_meta``, or an argument."""
    sent: dict[str, Any] = dict(meta or {})
    if proof is not None and proof[0] == TOKEN_HEADER:
        arguments = {**(arguments or {}), TOKEN_ARGUMENT: proof[1]}
    elif proof is not None:
        sent[PAYMENT_META] = _without_nulls(strict_json.loads(base64.b64decode(proof[1])))
    params: dict[str, Any] = {"name": name, "arguments": arguments, **extra}
    if sent or meta is not None:
        params["_meta"] = sent
    return types.CallToolRequest(params=types.CallToolRequestParams(**params))


def _without_nulls(value: Any) -> Any:
    """*value* without members that are null: strict servers take them for malformed fields."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


class _ToolCall(AsyncPump["Verdict"]):
    """One conversation, and what it wants done over MCP."""

    def __init__(
        self,
        payer: Payer,
        call: Call,
        tool: str,
        arguments: dict[str, Any] | None,
        send: Callable[[Proof | None], Awaitable[Result]],
    ) -> None:
        self._buyer = buyer_of(payer)
        self._call = call
        self._tool = tool
        self._arguments = arguments
        self._send = send
        self.flow = conversation.converse(self._buyer, call)
        self._patience = Patience(call.wait_s)
        self._performer = AsyncPerformer(self._buyer.ledger, self._patience)
        self._heard: Heard | None = None
        self._result: Result | None = None
        self._error: mcp.MCPError | None = None
        self.market = Market(call.state.origin)

    async def run(self) -> Result:
        """The tool's answer, paid for if it had to be."""
        try:
            verdict = await self._driven()
        except PaymentError as error:
            error.response = self._result or self._error
            raise
        finally:
            await self._close()
        return self._concluded(verdict)

    async def failed(self, exc: BaseException) -> None:
        """The call ends with *exc*: write down what that means, wherever it came from."""
        try:
            if not self.is_over:
                await self._driven(exc)
        except BaseException as raised:  # re-raised unless it is the same
            if raised is not exc and not isinstance(raised, GeneratorExit):
                raise
        finally:
            if self._buyer.ledger.handed_by(self._call.carrier):
                take_back = partial(self._buyer.take_back, self._call.carrier)
                await self._performer.record(take_back)

    async def _close(self) -> None:
        if self.market.open and self._performer.may_wait:
            with CancelScope(shield=True):
                await self.market.aclose()

    async def _driven(self, failure: BaseException | None = None) -> Verdict:
        """What the conversation ends with; where there was a *failure*, it goes on from that."""
        step = partial(next, self.flow) if failure is None else partial(self.throw, failure)
        found = await self.advance(step)
        while isinstance(found, (Ask, Fetch)):
            found = await self._answered(found)
        return found

    async def _answered(self, wanted: Ask | Fetch) -> Ask | Fetch | Verdict:
        try:
            answer = await self._sent(wanted)
        except BaseException as exc:  # noqa: BLE001  # the flow decides
            return await self.advance(partial(self.throw, exc))
        return await self.advance(partial(self.flow.send, answer))

    async def _sent(self, wanted: Ask | Fetch) -> Reply | Fetched:
        self._patience.renew(paid=wanted.proof is not None)
        if isinstance(wanted, Fetch):
            return await self.market.fetch(wanted)
        return await self._ask(wanted.proof)

    async def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, ReadBody):
            return self._heard.body if self._heard is not None else None
        if isinstance(effect, Fingerprint):
            return await self._elsewhere(self._fingerprint)
        if isinstance(effect, Payload):
            return await self._elsewhere(self._payload)
        assert not isinstance(effect, (Ask, Fetch))
        return await self._performer.perform(effect)

    async def _ask(self, proof: Proof | None) -> Reply:
        self._result = self._error = None
        try:
            self._result = await self._send(proof)
        except mcp.MCPError as error:
            found = heard_error(error)
            if found is None:
                raise
            self._error = error
        else:
            found = self._said(self._result)
        self._heard = found
        length = None if found.body is None else len(found.body)
        return Reply(status=found.status, url=self._call.url, headers=found.headers, length=length)

    def _said(self, result: Result) -> Heard:
        if isinstance(result, types.CallToolResult):
            return heard(result, self._is_ours)
        return Heard(status=500, headers={})  # it wants more first: nothing was delivered

    def _is_ours(self, document: dict[str, Any]) -> bool:
        """Whether a document that comes without ``isError`` asks to be paid for this very call."""
        if "paymentId" in document:
            services = self._buyer.settings.services
            service = services.name(self._call.url)
            return names_service(document, lambda name: services.canonical(name) == service)
        return names_place(document, self._call.state.origin, self._tool)

    async def _elsewhere(self, read: Callable[[], T]) -> T:
        """Read the arguments, in a thread where that takes long."""
        if weight(self._arguments, _AT_ONCE) <= _AT_ONCE:
            return read()
        return await to_thread.run_sync(read)

    def _fingerprint(self) -> str:
        asked = {"tool": self._tool, "arguments": to_jsonable_python(self._arguments or {})}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _payload(self) -> Content | None:
        """The arguments, as the service behind the tool takes them."""
        if weight(self._arguments, PAYLOAD_BYTES_MAX) > PAYLOAD_BYTES_MAX:
            return None
        body = json.dumps(to_jsonable_python(self._arguments or {})).encode()
        return Content(body, "application/json") if len(body) <= PAYLOAD_BYTES_MAX else None

    def _concluded(self, verdict: Verdict) -> Result:
        """The answer with its receipt; an answer that was an error is raised as it came."""
        if self._error is not None:
            if verdict.receipt is not None:
                paid = verdict.receipt
                self._error.add_note(f"x402_mask: payment {paid.payment_id} is {paid.outcome}")
            if verdict.refusal is not None:
                verdict.refusal.response = self._error
            raise self._error from verdict.refusal
        assert self._result is not None
        meta = {k: v for k, v in (self._result.meta or {}).items() if k not in (_RECEIPT, _REFUSAL)}
        if verdict.receipt is not None:
            meta[_RECEIPT] = verdict.receipt
        if verdict.refusal is not None:
            meta[_REFUSAL] = verdict.refusal
            verdict.refusal.response = self._result
        if meta or self._result.meta is not None:
            self._result.meta = meta
        return self._result
