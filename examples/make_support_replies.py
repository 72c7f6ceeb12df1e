"""Writes support_replies.jsonl: answers of a shop's customer support, labelled good (true) or bad (false).

    python examples/make_support_replies.py            writes the file beside this script
    python examples/make_support_replies.py OUT.jsonl  writes it elsewhere

The shop, its customers and all text are invented. The same seed always gives the same file. A good answer is
specific, polite and correct; a bad one is curt, evasive, wrong, or long and empty, so that length does not
reveal the label. Many questions have an answer of each kind.
"""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 20240726
ROWS = 360
Turn = dict[str, str]


@dataclass(frozen=True)
class Topic:
    """One reason to write to support, with good and bad answers."""

    asks: tuple[str, ...]
    """What customers write."""
    helps: tuple[str, ...]
    """Answers that solve it, each complete."""
    fails: tuple[str, ...]
    """Answers that do not: a curt one, a wrong one, and last a long and empty one."""


TOPICS = (
    Topic(
        asks=(
            "I was charged twice for my {item}. Order {order}.",
            "Why do I see two payments for order {order} on my card?",
            "My bank shows the {item} two times. Can you check?",
        ),
        helps=(
            "I can see both payments for order {order}. The second one is only a reservation by your "
            "bank and disappears within three working days. If it is still there on {day}, write to "
            "me and I will refund it.",
            "The {item} was indeed charged twice. I have sent the second amount back today; it "
            "reaches your card in two to five working days.",
            "The second payment is on its way back to you. Sorry for the fright!",
        ),
        fails=(
            "Payments are handled by the bank. Ask them.",
            "Our system never charges twice, so you must have ordered twice.",
            "Double payments can have many different reasons, which are sometimes technical and "
            "sometimes not. Please keep an eye on your account over the coming weeks and months and "
            "see how it develops.",
        ),
    ),
    Topic(
        asks=(
            "Where is my {item}? It should have come on {day}.",
            "Order {order} has not moved for a week. What is going on?",
            "The tracking for my {item} still says 'label created'.",
        ),
        helps=(
            "Your {item} left our warehouse yesterday and is at the depot in {city}. The carrier "
            "plans to deliver it on {day} before noon. I will check again that evening and write to "
            "you if it has not arrived.",
            "Order {order} was held up because one part was out of stock. It ships today, and I have "
            "taken the delivery fee off your bill.",
            "It is in {city} now and comes on {day}.",
        ),
        fails=(
            "It will arrive when it arrives.",
            "We are not responsible for parcels once they have left the building.",
            "Thank you so much for your patience with us! Deliveries are an important topic for all "
            "our customers, and we work on them every day with great passion. We are sure that you "
            "will enjoy your order.",
        ),
    ),
    Topic(
        asks=(
            "The {item} arrived broken. What now?",
            "My {item} came with a crack in it. Order {order}.",
            "Just opened the parcel and the {item} is in pieces.",
        ),
        helps=(
            "I am sorry that the {item} broke on the way. A new one goes out today at no cost. You "
            "can keep or recycle the old one; there is no need to send it back.",
            "Please send me one photo of the {item} and of the box. With that I can order a "
            "replacement right away, and you will have it by {day}.",
            "A new {item} is on its way. Keep the broken one.",
        ),
        fails=(
            "You should have checked it at the door. Too late now.",
            "Glue usually works.",
            "We are very sorry to hear this. We pack every {item} with the greatest care, and we have"
            " never had a complaint about our boxes before, so we cannot really explain what happened"
            " at your place.",
        ),
    ),
    Topic(
        asks=(
            "How do I send the {item} back?",
            "I want to return order {order}. It is not what I expected.",
            "Can I still return my {item}? I bought it three weeks ago.",
        ),
        helps=(
            "You have 60 days to return the {item}. Open Orders, choose Return, and print the label; "
            "drop the parcel at any post office. The money is back within five days after we receive "
            "it.",
            "Of course. I have sent you a prepaid label for order {order}. Just put it on the box. No"
            " reason needed.",
            "Yes, until {day}. The label is in your mail.",
        ),
        fails=(
            "Returns are on the website.",
            "Only unopened goods can be returned, and yours is not.",
            "There are several ways in which a return can be made, depending on the product, the "
            "country and the season. Customers normally find the one that suits them best if they "
            "look around a little.",
        ),
    ),
    Topic(
        asks=(
            "I forgot my password and the reset mail does not come.",
            "I cannot log in any more since {day}.",
            "The login page says my account does not exist.",
        ),
        helps=(
            "The reset mail is often caught by the spam filter: please look for a message from "
            "help@larkfield.example. If there is none, tell me the address you registered with and I "
            "will send you a new link, which works for one hour.",
            "Your account exists under an older address that ends in @mailbox.example. Use that one "
            "to log in; you can then change it under Settings, Profile.",
            "I have just sent you a new link. It works for one hour.",
        ),
        fails=(
            "Try again.",
            "Then make a new account.",
            "Passwords are very important for your safety and should be long and contain special "
            "characters. Please do not write them on paper, and never share them with anybody, not "
            "even with us.",
        ),
    ),
    Topic(
        asks=(
            "Please cancel my Larkfield Plus membership.",
            "How do I stop Plus before it renews on {day}?",
            "I do not use Plus any more and want to end it.",
        ),
        helps=(
            "Done: your Plus membership ends on {day}, and nothing more will be charged. Until then "
            "free delivery still works.",
            "You can end it under Account, Membership, End. It takes effect at the end of the paid "
            "month. If you prefer, I can do it for you now.",
            "Cancelled. Your last day is {day}.",
        ),
        fails=(
            "Why would you do that? Plus is great.",
            "Memberships can only be cancelled by letter in the first week of the year.",
            "Before we can talk about that, let me tell you about the many advantages of Plus: free "
            "delivery, early sales, a birthday surprise and much more. Most members stay with us for "
            "many years.",
        ),
    ),
    Topic(
        asks=(
            "I moved. Can order {order} go to my new address?",
            "Wrong address on my {item} order, please change it.",
            "Can you deliver the {item} to {city} instead?",
        ),
        helps=(
            "Order {order} has not been packed yet, so I can change it. Please send me the new "
            "street, number and postcode, and I will confirm within the hour.",
            "I have sent your {item} on to {city}. Delivery is now planned for {day}. Your saved "
            "address is unchanged; you can edit it under Account, Addresses.",
            "Changed. The {item} now goes to {city}.",
        ),
        fails=(
            "No.",
            "Addresses cannot be changed. You could wait at the old door.",
            "Address changes are a sensitive matter because of privacy rules. We take privacy "
            "seriously and therefore cannot say anything about addresses in this chat, or in general,"
            " at this time.",
        ),
    ),
    Topic(
        asks=(
            "I need an invoice for order {order}.",
            "My company needs a bill with our tax number for the {item}.",
            "Where can I download my invoices?",
        ),
        helps=(
            "You find all invoices under Orders, Documents, as PDF files. To add a tax number, click "
            "Edit billing once; it then appears on the new copy of the invoice as well.",
            "I have attached the invoice for order {order} to a mail that is on its way to you. Tell "
            "me the tax number if it should be on it, and I will send a corrected one.",
            "It is in your mail now, with your tax number.",
        ),
        fails=(
            "You got one in the box.",
            "We only make invoices for business customers with at least ten orders.",
            "Invoices are documents which show what was bought, when, and at what price. They can be "
            "useful for taxes, so we advise you to keep them in a safe place for several years.",
        ),
    ),
    Topic(
        asks=(
            "The code SPRING15 does not work on my {item}.",
            "Your newsletter code is rejected at the checkout.",
            "Why is my discount gone in the basket?",
        ),
        helps=(
            "SPRING15 needs a basket of at least 40 euros, and yours is a little below. Add anything "
            "small, or tell me, and I will take 15 percent off the {item} by hand.",
            "The code ended last night. As you received it late, here is a new one for you that works"
            " until {day}: THANKYOU15.",
            "I took 15 percent off your basket. You can pay now.",
        ),
        fails=(
            "Codes expire. Read the small print.",
            "Discounts do not work on phones.",
            "We are happy that you are interested in our offers. New offers come all the time, and "
            "perhaps one of them will be right for you one day. Please keep reading our newsletter "
            "with attention.",
        ),
    ),
    Topic(
        asks=(
            "The app closes each time I open my basket.",
            "Your app is frozen since the update.",
            "I cannot pay in the app, it shows a white page.",
        ),
        helps=(
            "That is a fault in version 4.2 that we mended this morning. Please update to 4.2.1 in "
            "the store and start the app once more. Your basket is kept.",
            "Sorry about that. As a way around it, the basket works in the browser, with the same "
            "account. I have passed your report on and will write to you when the new version is out,"
            " most likely on {day}.",
            "Please update to version 4.2.1. It mends this.",
        ),
        fails=(
            "Works on my phone.",
            "Buy a newer phone.",
            "Software is complex, and sometimes there are unexpected effects when many people use it "
            "at the same time. Our developers are aware that apps exist and are always thinking about"
            " possible improvements.",
        ),
    ),
    Topic(
        asks=(
            "How long is the warranty on the {item}?",
            "My {item} stopped working after a year. Is that covered?",
            "Does the warranty cover the battery of the {item}?",
        ),
        helps=(
            "The {item} has a warranty of three years, battery included. As yours is one year old, we"
            " repair or replace it free of charge. Shall I send you a box for it?",
            "Three years from the date on the invoice. Wear and tear is not covered, faults are. If "
            "you tell me what the {item} does, I can say which of the two it is.",
            "Three years, battery included. Yours is covered.",
        ),
        fails=(
            "The warranty is whatever the law says.",
            "Warranty ends when you open the box.",
            "Quality is what we stand for. Each {item} is tested by hand, and our customers are happy"
            " with it for a long, long time, which is why questions about the warranty are hardly "
            "ever asked.",
        ),
    ),
    Topic(
        asks=(
            "One of the two cups is missing from order {order}.",
            "The screws for the {item} were not in the box.",
            "My parcel was incomplete. The {item} is missing.",
        ),
        helps=(
            "I am sorry about that. Order {order} was sent in two parcels, and the second one arrives"
            " on {day}. You do not have to do anything.",
            "That should not happen. I have sent the missing part by letter post today; it fits in "
            "the letter box, and you should have it by {day}.",
            "The missing part is in the post and arrives on {day}.",
        ),
        fails=(
            "Look again. It is in there.",
            "Parts are sold separately.",
            "Our packing machine counts everything with modern sensors, and its error rate is "
            "extremely low compared with that of other machines, as you can read in our report on "
            "packing.",
        ),
    ),
    Topic(
        asks=(
            "Please delete my account and my data.",
            "What do you know about me, and how do I get rid of it?",
            "I want all my personal data removed.",
        ),
        helps=(
            "I have started the deletion. You will get a mail with a link to confirm it; after that "
            "everything is removed within 14 days, except invoices, which the law makes us keep.",
            "You can see and download your data under Account, Privacy, and delete the account on the"
            " same page. If you have an open order, it is delivered first.",
            "Started. Please click the link in the mail to confirm it.",
        ),
        fails=(
            "We do not delete customers.",
            "Your data is safe with us, so there is no reason to delete it.",
            "Data is the oil of our time, as people say. We use it to make shopping better for "
            "everybody, for example with personal tips, and we believe that you will miss those tips "
            "if they are gone.",
        ),
    ),
    Topic(
        asks=(
            "Is the {item} back in stock soon?",
            "When can I order the {item} in green again?",
            "The {item} is sold out. Will there be more?",
        ),
        helps=(
            "Yes: we expect 200 pieces on {day}. Click 'Tell me' on the page of the {item}, and you "
            "get a mail the moment it can be ordered.",
            "The green one is not made any more, I am afraid. The {item} in dark green is very close "
            "and in stock; I can send you a photo of both side by side.",
            "On {day}. I have put one aside for you.",
        ),
        fails=(
            "No idea.",
            "Everything on the site is in stock.",
            "Stock levels go up and down depending on how much is bought and how much is delivered. "
            "That is why it is always good to order early, and not only when one needs something.",
        ),
    ),
    Topic(
        asks=(
            "My gift card shows zero although I never used it.",
            "How do I pay with a gift card?",
            "Can I use two gift cards for one {item}?",
        ),
        helps=(
            "Yes, up to five cards per order. Enter the first code in the field 'Gift card' at the "
            "checkout, click Add, then enter the next one. What is left stays on the card.",
            "The card was never activated in the shop, which is our mistake. I have activated it now,"
            " and the full amount is on it. Please try once more.",
            "Your card is active now, and two work together.",
        ),
        fails=(
            "Then you did use it.",
            "Gift cards are for gifts, not for paying.",
            "A gift card is a lovely present for birthdays, weddings and many other days. We have "
            "them in four designs, and the one with the bird is the most popular among our customers.",
        ),
    ),
    Topic(
        asks=(
            "How do I clean the {item}?",
            "Is the {item} safe for the dishwasher?",
            "There are stains on my {item}. Any advice?",
        ),
        helps=(
            "Warm water and a drop of washing-up liquid is best for the {item}. For stains, leave a "
            "spoon of baking soda on them overnight. Please no dishwasher: the coating suffers.",
            "Wipe the {item} with a damp cloth and dry it at once. Twice a year, a little linseed oil"
            " keeps the surface smooth.",
            "Warm water, a soft cloth, no dishwasher.",
        ),
        fails=(
            "With water.",
            "Use bleach and a steel brush, that always works.",
            "Cleaning is a matter of taste. Some people clean a lot and others do not, and both can "
            "be happy with their {item}, which looks good in almost every kitchen and living room.",
        ),
    ),
)

ITEMS = (
    "kettle",
    "desk lamp",
    "oak shelf",
    "coffee grinder",
    "wool blanket",
    "garden chair",
    "cast-iron pan",
    "clock",
)
CITIES = ("Aarhus", "Ghent", "Porto", "Leipzig", "Turku", "Graz", "Lyon")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "3 May", "12 June", "28 August")
GREETINGS = ("", "", "Hello! ", "Hi. ", "Good morning. ", "Hey. ")
THANKS = ("", "", "", " Thanks!", " Please help.", " This is urgent.", " Thank you in advance.")
OPENINGS = ("", "", "", "Thank you for writing. ", "Hello. ", "Good that you ask. ")
CLOSINGS = (
    "",
    "",
    "",
    " Is there anything else I can do?",
    " Have a good day.",
    " Just reply here if it does not help.",
)
BAD_OPENINGS = ("", "", "", "Hello. ", "Thank you for writing. ", "Well. ")
BAD_CLOSINGS = ("", "", "", " Have a good day.", " Anything else?", " That is all I can say.")
SYSTEMS = (
    "You answer customers of Larkfield, a shop for household goods. Be brief, kind and exact.",
    "You are the support assistant of Larkfield. Solve the problem, or say what happens next and when.",
    "You write for the Larkfield support team. Never blame the customer.",
)
COUNTER_QUESTIONS = (
    "Happy to look into it. Which order is it about?",
    "I can check that. Could you give me the order number, please?",
    "Let me see. Under which order number did you buy it?",
)


def fill(text: str, words: dict[str, str]) -> str:
    """The text with the item, order, day and city of one customer."""
    return text.format(**words)


def make_prompt(topic: Topic, words: dict[str, str], rng: random.Random) -> list[Turn]:
    """The turns before the answer: a question, sometimes with a system turn or a counter-question."""
    question = rng.choice(GREETINGS) + fill(rng.choice(topic.asks), words) + rng.choice(THANKS)
    turns = [{"role": "user", "content": question}]
    if rng.random() < 0.35:
        turns.insert(0, {"role": "system", "content": rng.choice(SYSTEMS)})
    if rng.random() < 0.2:
        order = rng.choice(("It is {order}.", "{order}, from last month.", "The number is {order}."))
        turns += [
            {"role": "assistant", "content": rng.choice(COUNTER_QUESTIONS)},
            {"role": "user", "content": fill(order, words)},
        ]
    return turns


def make_answer(topic: Topic, words: dict[str, str], label: bool, rng: random.Random) -> Turn:
    """An answer that deserves the label."""
    if label:
        text = rng.choice(OPENINGS) + fill(rng.choice(topic.helps), words) + rng.choice(CLOSINGS)
    else:
        # Half of the bad answers are the long one, so that short does not mean bad.
        (fail,) = rng.choices(topic.fails, weights=(1, 1, 2))
        text = rng.choice(BAD_OPENINGS) + fill(fail, words) + rng.choice(BAD_CLOSINGS)
    return {"role": "assistant", "content": text}


def make_rows(count: int = ROWS, seed: int = SEED) -> list[dict[str, Any]]:
    """`count` rows in random order; one prompt in four has an answer of each label."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        topic = rng.choice(TOPICS)
        words = {
            "item": rng.choice(ITEMS),
            "order": f"L-{rng.randrange(10_000, 99_999)}",
            "day": rng.choice(DAYS),
            "city": rng.choice(CITIES),
        }
        prompt = make_prompt(topic, words, rng)
        labels = (True, False) if rng.random() < 0.25 else (rng.random() < 0.5,)
        for label in labels:
            answer = make_answer(topic, words, label, rng)
            rows.append({"conversations": [*prompt, answer], "label": label})
    rng.shuffle(rows)
    return rows[:count]


def main() -> None:
    """Write the file."""
    default = Path(__file__).with_name("support_replies.jsonl")
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make_rows()), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
