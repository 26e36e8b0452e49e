"""Which layer is to blame: the search for the place where a bundle leaves TensorFlow. It never imports the maker.

From the outside in, each module asks one question:

* :mod:`.search`: which case, and is there anything to rank;
* :mod:`.cuts`: which island, or which op between islands;
* :mod:`.island`: which node of it, or is it the engine that is made of them;
* :mod:`.inside`: what is every tensor in there in TensorFlow, and what is born where (:mod:`.layout`, :mod:`.measure`);
* :mod:`.rank`: what does every layer in a reduced precision cost, and :mod:`.keep`: what to type about it.

:mod:`.reference` and :mod:`.opened` take a bundle apart; :mod:`.finding` is what comes out, :mod:`.render` shows it.
"""

from refimpl.oracle.bisect.finding import Finding, Origin, Place, RankedLayer, Ranking, Report
from refimpl.oracle.bisect.search import bisect

__all__ = ["Finding", "Origin", "Place", "RankedLayer", "Ranking", "Report", "bisect"]
