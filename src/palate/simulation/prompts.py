"""Prompts made of parts: a question on a topic, a reason for asking, a wish, a belief.

Legend: G prompts, Q questions.
"""

import numpy as np

from palate.errors import PalateError
from palate.simulation.topics import TOPICS

FRAMES = (
    "Could you explain {}?",
    "I would like to understand {}.",
    "Please tell me about {}.",
    "What can you tell me about {}?",
    "I need a short text on {}.",
    "Help me to learn about {}.",
    "What should I know about {}?",
    "Write a few facts about {}.",
)
REASONS = (
    "I have to give a talk on it at school next week.",
    "My daughter asked me at breakfast and I had no answer.",
    "We are preparing a quiz evening for our club.",
    "It came up in a documentary that I watched last night.",
    "I am writing a small article for the village newspaper.",
    "A friend and I made a bet on some of the details.",
    "Our museum wants to print a new set of cards on it.",
    "I teach a class of twelve-year-olds and need material.",
    "The subject is part of my exam on Monday morning.",
    "I am translating a children's book in which it plays a role.",
    "My grandfather used to speak of it when I was small.",
    "We will visit an exhibition on it during the holidays.",
    "I want to make a poster for the wall of my office.",
    "It is for the first episode of a podcast that I plan.",
    "A customer asked me today and I promised to reply.",
    "I am designing a board game with cards on this.",
    "Someone at the library told me to look into it.",
    "I have forgotten almost all that I learned at university.",
    "My reading group discusses a novel that is full of it.",
    "I need it for the description of a photo album.",
    "Our neighbour claims to be an expert and I want to keep up.",
    "I am setting up a guided tour for visitors from abroad.",
    "It is the topic of this month's essay competition.",
    "I saw three contradicting posts on it this afternoon.",
    "The radio station where I work needs a script by noon.",
    "I am curious since a conversation on the train.",
    "My son collects stickers on it and asks me all the time.",
    "A crossword puzzle made me realise how little I know.",
    "I am moving to a new job where people talk of it daily.",
    "We have a long drive ahead and want something to discuss.",
)
WISHES = (
    "Keep the answer to what is known for sure.",
    "Plain words would suit me better than technical terms.",
    "I would rather have a few facts than a long essay.",
    "Please write so that I can read it aloud.",
    "It should be easy to follow for a beginner.",
    "Numbers are welcome where they make things clearer.",
    "I already know the basics, so go beyond them.",
    "Whatever you find most remarkable is fine.",
    "I will check the answer in an encyclopedia afterwards.",
    "Please leave out anything that is in dispute.",
    "The listeners are adults without any training in this.",
    "A handful of sentences is what I am looking for.",
    "I plan to learn your answer by heart.",
    "There is room for about half a page.",
    "Mistakes would be embarrassing in front of that audience.",
    "You may start with whichever point comes to mind first.",
    "Please assume that I have never read a word on it.",
    "Dates, places and names are what I forget most easily.",
    "I want to be able to explain it to others later.",
    "Try to mention things that people tend to get wrong.",
    "Nothing too scientific, since children will listen as well.",
    "I will turn your points into drawings.",
    "One statement after another would be perfect.",
    "The more concrete it is, the easier it is to remember.",
    "I have ten minutes to read before the meeting.",
    "Short sentences help me, as English is new to me.",
    "Please do not send me links or lists of books.",
    "I would like to compare it with what my teacher says.",
    "Write in the way in which a friend would explain it.",
    "We will print what you write on the back of a ticket.",
)
BELIEFS = (
    "As far as I know, this is so: {}",
    "I was taught the following: {}",
    "Here is what I believe: {}",
    "My own understanding is this: {}",
)
QUESTIONS = tuple((t, question) for t, topic in enumerate(TOPICS) for question in topic.questions)
"""Topic index and question, Q of them."""
MAX_PROMPTS = len(QUESTIONS) * len(REASONS) * len(WISHES)


def draw_parts(
    random: np.random.Generator, num_prompts: int, allowed_Q: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Question, reason and wish of each prompt (G each), of which no two prompts share all three.

    `allowed_Q` says which questions may be asked. Raises PalateError when there are fewer
    combinations than prompts.
    """
    allowed = np.arange(len(QUESTIONS)) if allowed_Q is None else np.flatnonzero(allowed_Q)
    num_reasons, num_wishes = len(REASONS), len(WISHES)
    num_combinations = len(allowed) * num_reasons * num_wishes
    if not 1 <= num_prompts <= num_combinations:
        raise PalateError(
            f"num_prompts is {num_prompts}, must be from 1 to {num_combinations}: so many distinct"
            " prompts there are"
        )
    drawn_G = random.choice(num_combinations, num_prompts, replace=False)
    question_G, rest_G = np.divmod(drawn_G, num_reasons * num_wishes)
    reason_G, wish_G = np.divmod(rest_G, num_wishes)
    return allowed[question_G], reason_G, wish_G


def prompt_text(question: int, reason: int, wish: int, frame: int, belief: str) -> str:
    """The user's turn; `belief` is a sentence that the user holds true, or empty."""
    asked = FRAMES[frame].format(QUESTIONS[question][1])
    parts = [asked, REASONS[reason], belief, WISHES[wish]]
    return " ".join(part for part in parts if part)


def reworded(prompt: str) -> str:
    """A near-duplicate: the same request with another word or two at its beginning."""
    beginning = next(start for start in _SWAPS if prompt.startswith(start))
    return _SWAPS[beginning] + prompt.removeprefix(beginning)


_SWAPS = {
    "Could you": "Can you",
    "I would like to": "I want to",
    "Please tell": "Do tell",
    "What can": "What could",
    "I need a": "I want a",
    "Help me to": "Help us to",
    "What should": "What must",
    "Write a": "Note a",
}
