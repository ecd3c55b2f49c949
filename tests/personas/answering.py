"""Personas for a made-up provider: sixty kinds of people, no two of them alike."""

from __future__ import annotations

import re
from typing import Any

from consumers.personas.making import AGES
from tests.llm.provider import Asked

_KINDS = """
bicycle courier|cargo bikes|steep hills
night-shift nurse|hospital rotas|swollen feet
retired geography teacher|old maps|small print
apprentice electrician|fuse boxes|exam nerves
dairy farmer|milk prices|frozen pipes
violin maker|spruce wood|humid summers
tax inspector|receipts|moody clients
mother of twins on leave|baby monitors|broken sleep
long-distance lorry driver|rest stops|weak radio signals
marine biologist|plankton counts|grant deadlines
unemployed welder|job fairs|rusty tools
wedding photographer|lenses|rainy Saturdays
pharmacist|drug interactions|empty shelves
primary school pupil's grandfather|kites|arthritis
call-centre agent|scripts|headsets that hiss
amateur astronomer|dark skies|street lamps
street-food cook|chili oil|parking fines
court interpreter|dialects|mumbling lawyers
beekeeper|queen bees|mites
stand-up comedian|open mics|hecklers
librarian in a small town|inter-library loans|budget cuts
data centre technician|cooling fans|cable mess
piano student|sonatas|noisy neighbours
fire-fighter|ladders|false alarms
carer of a blind brother|screen readers|unlabelled buttons
real estate agent|floor plans|haggling
vintner|cork taint|hail
insurance clerk|claims|overtime
skateboarder|half-pipes|cracked boards
monk who runs a brewery|hops|tourists
refugee learning the language|grammar drills|forms
chess trainer|endgames|cheaters
dog groomer|poodles|fleas
surveyor|theodolites|fog
model railway builder|points and signals|dust
ski instructor|powder snow|knee pain
probation officer|second chances|paperwork
florist|peonies|wilting stock
crossword setter|anagrams|pedants
bus driver|timetables|vandalism
potter|kilns|glaze cracks
sound engineer|microphones|feedback
hotel receptionist|guest reviews|double bookings
gamekeeper|deer counts|poachers
seamstress|linen|thin margins
blood donor and accountant|spreadsheets|queues
paramedic trainee|first aid|blood
rowing coach|oars|algae
antique clock repairer|escapements|fake parts
union organiser|pay talks|apathy
tattoo artist|line work|regretful customers
glaciologist|ice cores|frostbite
baker of gluten-free bread|buckwheat|crumbs
toy inventor|prototypes|choking rules
goat herder|cheese|wolves
air traffic controller|runways|stress
sign-language poet|gestures|bad lighting
mushroom picker|chanterelles|lookalikes
locksmith|pins and tumblers|lost keys
puppet theatre director|marionettes|empty seats
""".strip().splitlines()

_NAMED = re.compile(r"^- Person (\d+) ", re.MULTILINE)


def answer(asked: Asked) -> dict[str, Any]:
    """As many as are asked for, none of them among those that the prompt names."""
    properties = asked.schema["properties"]
    found: dict[str, Any] = {}
    if "community" in properties:
        found["community"] = {
            "about": "People come for news of the subject and stay for the quarrels.",
            "tone": "Quick, dry and generous to those who did their homework.",
            "themes": ["what is new", "what broke", "prices", "advice"],
        }
    if "personas" in properties:
        wanted = properties["personas"]
        ids = wanted["items"]["properties"]["evidence"]["items"]["enum"]
        named = set(map(int, _NAMED.findall(asked.call.prompt)))
        free = (kind for kind in range(len(_KINDS)) if kind not in named)
        found["personas"] = [persona(next(free), ids) for _ in range(wanted["minItems"])]
    return found


def persona(kind: int, ids: list[str]) -> dict[str, Any]:
    occupation, love, trouble = _KINDS[kind % len(_KINDS)].split("|")
    initial = chr(65 + kind % 26)
    return {
        "evidence": [ids[kind % len(ids)]],
        "name": f"Person {kind} {initial}.",
        "age_range": AGES[kind % len(AGES)],
        "occupation": occupation.capitalize(),
        "interests": [love, f"the history of {love}", f"talking about {love}"],
        "goals": [f"to understand {love} at last", f"to get rid of {trouble}"],
        "frustrations": [f"{trouble} every week", f"nobody here believes in {love}"],
        "tone_of_voice": f"Writes as a {occupation} would speak at work.",
        "typical_posts": [
            f"Does anyone here know {love}? Asking as a {occupation}.",
            f"Third time this month: {trouble}. What do you do about it?",
        ],
    }
