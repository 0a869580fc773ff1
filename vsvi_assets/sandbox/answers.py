"""Answers that are the same for every request: errors, pages, and those of faults."""

import time
from email.utils import formatdate

import orjson
from aiohttp import web

from vsvi_assets.sandbox import overpass
from vsvi_assets.sandbox.faults import Fault

_LIMIT = "Application request limit reached"
_GRAPH_ERRORS: dict[Fault, tuple[int, int, str, dict[str, object]]] = {
    Fault.RATE_LIMITED: (429, 4, _LIMIT, {"is_transient": True}),
    Fault.RATE_LIMITED_DATE: (429, 4, _LIMIT, {"is_transient": True}),
    Fault.RATE_LIMITED_BARE: (429, 4, _LIMIT, {"is_transient": True}),
    Fault.APPLICATION_LIMIT: (400, 4, _LIMIT, {"is_transient": True}),
    Fault.UNKNOWN_ERROR: (
        500,
        1,
        "Please reduce the amount of data you're asking for, then retry your request",
        {},
    ),
    Fault.SERVER_ERROR: (500, 2, "Service temporarily unavailable", {"is_transient": True}),
    Fault.TIMEOUT: (400, -2, "Timeout", {"is_transient": False}),
    Fault.REFUSED_TOKEN: (401, 190, "Error validating application", {"type": "OAuthException"}),
}
_PAGES = {
    Fault.UNAVAILABLE: (503, "Service Unavailable"),
    Fault.GATEWAY_TIMEOUT: (504, "Gateway Timeout"),
    Fault.HTML_PAGE: (200, "Sorry, something went wrong."),
}
_TEXTS = {
    Fault.EMPTY: (200, ""),
    Fault.NOT_FOUND: (404, "Not Found"),
    Fault.EXPIRED: (403, "URL signature expired"),
}


def fault_answer(fault: Fault, retry_after: int = 0) -> web.Response:
    """Return the answer of a fault that is an answer of its own."""
    if fault in _PAGES:
        return html(*_PAGES[fault])
    if fault in _TEXTS:
        status, text = _TEXTS[fault]
        return web.Response(status=status, text=text)
    match fault:
        case Fault.NO_DATA:
            return json({"data": []})
        case Fault.TOO_BUSY:
            return overpass_error(
                504, "timeout. The server is probably too busy to handle your request."
            )
        case Fault.RATE_LIMITED_XML:
            body = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code></Error>'
            return web.Response(status=429, text=body, content_type="application/xml")
    status, code, message, more = _GRAPH_ERRORS[fault]
    response = graph_error(status, code, message, **more)
    if fault is Fault.RATE_LIMITED:
        response.headers["Retry-After"] = str(retry_after)
    if fault is Fault.RATE_LIMITED_DATE:
        response.headers["Retry-After"] = formatdate(time.time() + retry_after, usegmt=True)
    return response


def graph_error(status: int, code: int, message: str, **more: object) -> web.Response:
    """Return an error as the Graph API puts it."""
    error = {
        "message": message,
        "type": "MLYApiException",
        "code": code,
        "fbtrace_id": "ASandboxTraceIdOfNoMeaning",
    }
    return json({"error": error | more}, status)


def overpass_error(status: int, reason: str) -> web.Response:
    """Return Overpass's page for what it does not serve."""
    text = overpass.error_page(reason)
    return web.Response(status=status, text=text, content_type="text/html")


def json(content: object, status: int = 200) -> web.Response:
    """Return JSON."""
    body = orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS)
    return web.Response(status=status, body=body, content_type="application/json")


def html(status: int, title: str) -> web.Response:
    """Return a page that says no more than its title."""
    text = f"<!DOCTYPE html><html><head><title>{title}</title></head><body><h1>{title}</h1></body>"
    return web.Response(status=status, text=f"{text}</html>", content_type="text/html")
