"""How the official client reaches the API behind a base URL; apart, since httpx is loaded when needed."""

from contextvars import ContextVar

import httpx

from app.replicate.client import Root


class Rooted(httpx.AsyncBaseTransport):
    """Sends what the client asks of `<base URL>/v1` to where the API has its root behind that base URL."""

    def __init__(self, base_url: str, cancel_after: ContextVar[str | None]) -> None:
        """`cancel_after` is what the creation that a task makes has in its header `Cancel-After`."""
        self._cancel_after = cancel_after
        self._base = f"{base_url}/v1"
        self._root = Root(base_url)
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx asks for it."""

        async def status(url: str) -> int:
            headers = {"authorization": request.headers["authorization"]}
            probe = httpx.Request("GET", url, headers=headers, extensions=request.extensions)
            answer = await self._inner.handle_async_request(probe)
            await answer.aclose()
            return answer.status_code

        root = await self._root.find(status)
        after = self._cancel_after.get()
        if after is not None and request.method == "POST":
            request.headers["Cancel-After"] = after
        if root != self._base:
            request.url = httpx.URL(root + str(request.url).removeprefix(self._base))
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()
