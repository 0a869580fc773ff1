"""Answers that are the same for every request: errors, pages, and those of faults."""

import time
from email.utils import formatdate

import orjson
from aiohttp import web

from vsvi_assets.sandbox.faults import Fault


def fault_answer(fault: Fault, retry_after: int = 0) -> web.Response:
    """Return the answer of a fault that is an answer of its own."""
    match fault:
        case Fault.UNAVAILABLE:
            return html(503, "Service Unavailable")
        case Fault.GATEWAY_TIMEOUT:
            return html(504, "Gateway Timeout")
        case Fault.HTML_PAGE:
            return html(200, "Sorry, something went wrong.")
        case Fault.EMPTY:
            return web.Response(text="")
        case Fault.NOT_FOUND:
            return web.Response(status=404, text="Not Found")
        case Fault.EXPIRED:
            return web.Response(status=403, text="URL signature expired")
        case Fault.NO_DATA:
            return json({"data": []})
        case Fault.TOO_BUSY:
            reason = "timeout. The server is probably too busy to handle your request."
            return overpass_error(504, reason)
        case Fault.RATE_LIMITED_XML:
            body = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code></Error>'
            return web.Response(status=429, text=body, content_type="application/xml")
        case Fault.UNKNOWN_ERROR:
            message = "Please reduce the amount of data you're asking for, then retry your request"
            return graph_error(500, 1, message)
        case Fault.SERVER_ERROR:
            return graph_error(500, 2, "Service temporarily unavailable", is_transient=True)
        case Fault.TIMEOUT:
            return graph_error(400, -2, "Timeout", is_transient=False)
        case Fault.REFUSED_TOKEN:
            return graph_error(401, 190, "Error validating application", type="OAuthException")
    status = 400 if fault is Fault.APPLICATION_LIMIT else 429
    response = graph_error(status, 4, "Application request limit reached", is_transient=True)
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
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<html><head><title>OSM3S Response</title></head>'
        '<body>\n<p><strong style="color:#FF0000">Error</strong>: runtime error: open64: 0 Success '
        f"/osm3s_osm_base Dispatcher_Client::request_read_and_idx::{reason} </p>\n</body></html>\n"
    )
    return web.Response(status=status, text=text, content_type="text/html")


def json(content: object, status: int = 200) -> web.Response:
    """Return JSON."""
    body = orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS)
    return web.Response(status=status, body=body, content_type="application/json")


def html(status: int, title: str) -> web.Response:
    """Return a page that says no more than its title."""
    text = f"<!DOCTYPE html><html><head><title>{title}</title></head><body><h1>{title}</h1></body>"
    return web.Response(status=status, text=f"{text}</html>", content_type="text/html")
