"""Small talk to make a tiny model from: conversations of a few kinds, endlessly varied, always the same.

The text only has to be language-like: it gives the tokenizer its words and the model a sense of likely and
unlikely, so that training has something to change.
"""

import random
from collections.abc import Iterator

Turn = dict[str, str]

_THINGS = (
    "kettle lamp shelf coffee blanket chair pan clock book phone bike garden tent jacket ticket camera "
    "cake letter parcel invoice password account order address card code message report song train house"
).split()
_PLACES = (
    "Aarhus Ghent Porto Leipzig Turku Graz Lyon town kitchen office station library market school".split()
)
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday today tomorrow".split()
_NAMES = "Ada Ben Cleo Dirk Elif Finn Gita Hugo Ines Jan".split()
_SYSTEMS = (
    "You are a helpful assistant. Be brief, kind and exact.",
    "You answer the customers of a shop. Solve the problem, or say what happens next and when.",
    "You are a friendly guide. Answer in one or two sentences.",
)
_EXCHANGES = (
    (
        "Where is my {thing}? It should be here on {day}.",
        "Your {thing} is at the depot in {place} and arrives on {day} before noon.",
    ),
    (
        "The {thing} does not work any more. What can I do?",
        "I am sorry about that. Please send me a photo of the {thing}, and I will replace it by {day}.",
    ),
    (
        "How do I return the {thing} that I bought in {place}?",
        "You have {number} days. Open Orders, choose Return, print the label and put it on the box.",
    ),
    (
        "I was charged {number} euros for the {thing}. Is that right?",
        "The price is {number} euros. I have sent the rest back to your card; it takes a few working days.",
    ),
    (
        "Can you tell me how to clean a {thing}?",
        "Warm water and a soft cloth are best for it. Please do not use anything that is too strong.",
    ),
    (
        "Which {thing} should I take for {number} people?",
        "The larger {thing} is good for {number} people, and it is easy to use. It costs {number} euros.",
    ),
    (
        "I forgot my password and cannot open my account.",
        "I have sent you a new link. It works for one hour. If there is no message, try the other folder.",
    ),
    (
        "Please cancel my order {number}. I do not need the {thing}.",
        "Done: order {number} is cancelled and nothing will be charged. Is there anything else I can do?",
    ),
    (
        "What is the weather like in {place} on {day}?",
        "It is cold in the morning and warmer after noon. Take a jacket with you, it may rain on {day}.",
    ),
    (
        "Who is coming to {place} with us, {name}?",
        "{name} and {name} are coming. They take the train on {day} and bring the {thing}.",
    ),
    (
        "How many pieces of {thing} are left?",
        "There are {number} left. We expect more of them on {day}, and you get a mail when they are here.",
    ),
    (
        "Can I have the {thing} in green?",
        "It is not made in green any more, but the one in blue is very close. Shall I put one aside for you?",
    ),
    (
        "Why is the app so slow since {day}?",
        "That is a fault in the new version. We mend it today; please update and start the app once more.",
    ),
    (
        "Write a short message to {name} about the {thing}.",
        "Dear {name}, thank you for the {thing}. I will bring it back to {place} on {day}. Best wishes!",
    ),
    (
        "Tell me something about {place}.",
        "There is a market on {day}, and the library near the station is open until late. Many like it.",
    ),
    (
        "No, that is not what I asked. I want the {thing}.",
        "You are right, and I am sorry. Here is the {thing}: you find it under Account, on the first page.",
    ),
)
_SENTENCES = (
    "I can see what happened, and it is our mistake.",
    "That should not take longer than two or three working days.",
    "Every customer gets the same answer, whatever the question was.",
    "We never know when something like this happens.",
    "You should have asked before, it is too late now.",
    "Nobody can change that after the parcel has left the building.",
    "Most people find their way around the website by themselves.",
    "There are many reasons for it, some technical and some not.",
    "Thank you so much for your patience with us!",
    "If it has not arrived by then, write to me and I will check again.",
    "The documents are under Settings, as files that you can download.",
    "Have a good day, and say hello to everybody at home.",
    "Our team works with great care and passion, as it has for many years.",
    "You get your money back within five days, without giving a reason.",
    "It is free of charge, because one of the parts was missing.",
    "Please keep an eye on your account over the coming weeks.",
    "The law says that we must keep some of your data for a while.",
    "No idea, try again.",
    "A new one is on its way, you do not have to do anything.",
    "Look at the small print on the other side of the page.",
    "The offer ended last night, but here is a code that still works.",
    "It would be wrong to say more about this before we know the facts.",
    "First click on your name, then on the second button from the top.",
    "What would you like to know about it?",
    "My brother bought one in the spring, and he is very happy with it.",
    "Everything that we make is tested by hand, battery included.",
    "The water was so clear that we could see stones at the bottom.",
    "Children under twelve travel for half the price, dogs for nothing.",
    "Mix the flour with sugar, add two eggs, and wait for an hour.",
    "Then the door opened, and an old woman with a red umbrella came in.",
    "They expect about two hundred visitors, mostly from other countries.",
    "Let us talk about it when the report is ready.",
    "Is that really all? I thought there was more to it.",
    "Reading the whole book took me longer than a month.",
    "We use it to make shopping better for everybody.",
    "Good that you ask, because this is often misunderstood.",
    "The machine stops when the light turns yellow; press the switch again.",
    "Well, that depends on where you live and how often you use it.",
    "Then buy a newer one.",
    "Sorry for the trouble, this was never meant to happen.",
)


def conversations(seed: int) -> Iterator[list[Turn]]:
    """Conversations of one or two exchanges without end."""
    rng = random.Random(seed)
    while True:
        turns = [{"role": "system", "content": rng.choice(_SYSTEMS)}] if rng.random() < 0.3 else []
        for _ in range(rng.choice((1, 1, 2))):
            question, answer = rng.choice(_EXCHANGES)
            # Sentences that have nothing to do with it keep the model from being sure of what comes next.
            said = [answer, *rng.choices(_SENTENCES, k=2)][rng.randrange(2) :]
            rng.shuffle(said)
            turns.append({"role": "user", "content": _fill(question, rng)})
            turns.append({"role": "assistant", "content": _fill(" ".join(said), rng)})
        yield turns


def _fill(text: str, rng: random.Random) -> str:
    """The text with a choice for each gap, a new one each time."""
    while "{" in text:
        for gap, words in (("{thing}", _THINGS), ("{place}", _PLACES), ("{day}", _DAYS), ("{name}", _NAMES)):
            text = text.replace(gap, rng.choice(words), 1)
        text = text.replace("{number}", str(rng.randrange(2, 100)), 1)
    return text
