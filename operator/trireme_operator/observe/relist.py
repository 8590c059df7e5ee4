"""Full lists, again and again: a missed event costs at most as long as it is from one to the next."""

import logging
from collections.abc import Sequence

from trireme_operator.apply.api import Api, ApiError, JsonObject, path_of
from trireme_operator.metrics import INSTRUMENTS
from trireme_operator.observe.cache import Cache

log = logging.getLogger(__name__)


class Relister:
    """Lists resources into caches, in the whole cluster or in some namespaces."""

    def __init__(self, api: Api, namespaces: Sequence[str]) -> None:
        self._api = api
        self._namespaces = tuple(namespaces)  # empty: all

    async def __call__(
        self,
        cache: Cache,
        group: str,
        version: str,
        plural: str,
        *,
        namespaced: bool = True,
        kind: str | None = None,
        labelled: str | None = None,
    ) -> None:
        """List one resource. Where that is forbidden, what is known stays, and the rest goes on. Raises ApiError."""
        query = (("labelSelector", labelled),) if labelled else ()
        before = {place: cache.uids(place) for place in self._places(namespaced)}
        found: list[JsonObject] = []
        for place in list(before):
            try:
                found += await self._api.list_all(path_of(group, version, plural, place), query=query)
            except ApiError as error:
                if error.status != 403:
                    raise
                log.debug("list of %s: %s", plural, error)
                del before[place]
        if not before:
            cache.refused = True
            return
        if kind is not None:
            # Items of a list may come without their kind.
            found = [{"apiVersion": f"{group}/{version}", "kind": kind, **raw} for raw in found]
        cache.replace(found, set().union(*before.values()))
        INSTRUMENTS.last_relist.labels(plural).set_to_current_time()

    def _places(self, namespaced: bool) -> tuple[str | None, ...]:
        return self._namespaces if namespaced and self._namespaces else (None,)
