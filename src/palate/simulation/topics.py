"""What simulated answers are about: topics with questions, true facts, and a wrong version of each.

A fact is written `A bee has [six|eight] legs.`: true with the first of the two, wrong with the
second. The wrong version is as long as the true one, so that errors show in no count of words, and
no fact has a word that the style features look for.
"""

import re
from dataclasses import dataclass

_CHOICE = re.compile(r"\[([^|\]]+)\|([^\]]+)\]")


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One field of knowledge."""

    name: str
    questions: tuple[str, ...]
    """What one can ask about; each follows "Please tell me about"."""
    facts: tuple[tuple[str, str], ...]
    """Each fact as it is, and its wrong version."""


def _topic(name: str, questions: str, facts: str) -> Topic:
    lines = [line.strip() for line in facts.strip().splitlines()]
    return Topic(
        name=name,
        questions=tuple(question.strip() for question in questions.split(";")),
        facts=tuple((_CHOICE.sub(r"\1", line), _CHOICE.sub(r"\2", line)) for line in lines),
    )


TOPICS: tuple[Topic, ...] = (
    _topic(
        "honey bees",
        "how honey bees live together; what worker bees do all day; how bees find their food;"
        " how a beehive is built; what is special about a queen bee; how bees see the world;"
        " the body of a honey bee; the year of a bee colony",
        """
        A honey bee has [six|eight] legs.
        Worker bees are [all female|all male].
        Bees make wax with glands on their [abdomen|wings].
        A worker bee dances to tell the others [where food is|when to sleep].
        A queen bee lays up to two [thousand|dozen] eggs a day in summer.
        Male bees, the drones, [lack a sting|bear two stings].
        A honey bee has [five|seven] eyes.
        Bees can see [ultraviolet|infrared] light.
        The cells of a honeycomb have [six|four] sides.
        A worker bee in summer lives for about six [weeks|years].
        Bees carry pollen in baskets on their [hind|front] legs.
        A bee stores nectar in its [honey stomach|left wing].
        """,
    ),
    _topic(
        "the heart",
        "how the human heart works; the way of blood through the heart; what the heart is made of;"
        " how the heart keeps its rhythm; where the heart lies in the chest; what heart valves do;"
        " the arteries around the heart; how strong the heart is",
        """
        The human heart has [four|three] chambers.
        A heart at rest beats about [seventy|seven] times a minute.
        Blood for the body is pumped by the [left|right] side of the heart.
        The right side of the heart pumps blood to the [lungs|brain].
        The largest artery that leaves the heart is the [aorta|femur].
        Coronary arteries supply the [heart muscle|two kidneys] with blood.
        The pacemaker of the heart sits in the right [atrium|ventricle].
        Valves of the heart keep blood flowing in one [direction|ventricle].
        An adult heart is about as large as a [fist|melon].
        Veins carry blood [towards|past] the heart.
        The outer sac of the heart is the [pericardium|diaphragm].
        The wall of the heart is made of [muscle|cartilage].
        """,
    ),
    _topic(
        "volcanoes",
        "how a volcano erupts; where volcanoes are found; what lava is; the kinds of volcanoes;"
        " famous eruptions of volcanoes; what volcanic ash does; rocks that come from volcanoes;"
        " volcanoes on other planets",
        """
        Molten rock below a volcano is called [magma|marble].
        Most volcanoes stand along the edges of [tectonic plates|large rivers].
        The volcano Vesuvius buried Pompeii in the year [79|1779].
        The volcanoes of Hawaii sit above a [hot spot|salt lake].
        Pumice from a volcano [floats on|melts in] water.
        Obsidian is volcanic [glass|wood].
        The largest volcano of the solar system stands on [Mars|Pluto].
        Volcanic ash is made of tiny pieces of [rock|bark].
        Shield volcanoes have [gentle|vertical] slopes.
        The volcano Krakatoa erupted in [1883|1703].
        Soil made of volcanic ash is [rich in|free of] minerals.
        Lava that has cooled fast forms [basalt|chalk].
        """,
    ),
    _topic(
        "the Moon",
        "how the Moon moves; what the Moon is made of; the phases of the Moon;"
        " how people came to the Moon; what the Moon does to the sea; how big the Moon is;"
        " the surface of the Moon; eclipses and the Moon",
        """
        The Moon goes around the Earth in about [27|90] days.
        People first walked on the Moon in [1969|1951].
        The Moon causes the [tides|salt] of the ocean.
        Gravity on the Moon is about one [sixth|half] of that on Earth.
        The Moon shines by reflected [sunlight|starlight].
        The dark plains on the Moon are old [lava|ice].
        A solar eclipse needs a [new|full] moon.
        The Moon drifts [away from|nearer to] the Earth by some centimetres a year.
        In all, [twelve|forty] people have walked on the Moon.
        The diameter of the Moon is about a [quarter|tenth] of that of the Earth.
        The atmosphere of the Moon is extremely [thin|dense].
        Craters on the Moon were made by [meteorites|earthworms].
        """,
    ),
    _topic(
        "bread",
        "how bread is made; what makes bread rise; flour for baking bread; sourdough bread;"
        " how bread gets its crust; why bread goes stale; what salt does in bread;"
        " kneading bread dough",
        """
        Yeast makes bread rise with [carbon dioxide|pure nitrogen].
        Gluten gives bread dough its [stretch|smell].
        Sourdough bread rises with [wild yeast|baking soda].
        Kneading [strengthens|dissolves] the gluten in bread dough.
        Whole wheat bread contains the [bran|root] of the grain.
        Salt [slows|doubles] the work of yeast in bread dough.
        The crust of bread browns by the [Maillard|Haber] reaction.
        Bread goes stale [faster|slower] in a refrigerator than in a box.
        Rye bread has [less|more] gluten than wheat bread.
        Bread dough rises well at about [27|80] degrees Celsius.
        Steam in the oven gives bread a [shiny|bitter] crust.
        The baguette is a bread from [France|Portugal].
        """,
    ),
    _topic(
        "ancient Rome",
        "how ancient Rome was governed; the emperors of Rome; how the Roman Empire ended;"
        " buildings of ancient Rome; daily life in ancient Rome; the Roman army;"
        " how Romans built roads and aqueducts; the wars of ancient Rome",
        """
        The first emperor of Rome was [Augustus|Charlemagne].
        Julius Caesar of Rome was killed in the year [44|444] BC.
        The Colosseum in Rome was built for [gladiators|sailors].
        The language of ancient Rome was [Latin|Gothic].
        Roman aqueducts carried [water|grain] to the cities.
        The western Roman Empire fell in the year [476|1276].
        Hannibal crossed the [Alps|Urals] to attack Rome.
        A Roman legion was commanded by a [legate|bishop].
        The Roman wall of Hadrian stands in [Britain|Poland].
        Romans made concrete with volcanic [ash|salt].
        The centre of public life in Rome was the [Forum|harbour].
        The Roman emperor [Constantine|Caligula] founded Constantinople.
        """,
    ),
    _topic(
        "coffee",
        "where coffee comes from; how coffee is roasted; what caffeine in coffee does;"
        " the kinds of coffee beans; how to brew coffee; how coffee is grown;"
        " espresso and filter coffee; coffee without caffeine",
        """
        Coffee beans are the [seeds|roots] of a fruit.
        The coffee plant comes from [Ethiopia|Sweden].
        Robusta coffee holds [more|less] caffeine than arabica.
        The country that grows most coffee is [Brazil|Norway].
        Espresso is coffee made under high [pressure|voltage].
        Green coffee beans turn brown when they are [roasted|rinsed].
        Caffeine from coffee blocks [adenosine|insulin] in the brain.
        Coffee grows well in [tropical|arctic] highlands.
        Finely ground coffee gives its taste to water [quickly|slowly].
        Light roasts of coffee taste more [acidic|smoky].
        Coffee is sold raw as [green|blue] beans.
        A coffee cherry holds [two|nine] beans.
        """,
    ),
    _topic(
        "whales",
        "how whales breathe; what whales eat; the largest whales; how whales raise their young;"
        " the songs of whales; where whales travel; how whales came to live in the sea;"
        " how whales dive",
        """
        Whales breathe with [lungs|gills].
        The blue whale is the [largest|fastest] animal on Earth.
        Baleen whales filter [krill|moss] from the water.
        Whales feed their calves with [milk|eggs].
        Sperm whales hunt [squid|geese] in the deep.
        The ancestors of whales lived on [land|Mars].
        A whale moves its tail up and [down|sideways].
        Humpback whales are known for their long [songs|horns].
        Killer whales belong to the family of [dolphins|sharks].
        Blubber protects a whale from [cold|noise].
        Bowhead whales live for over two [hundred|thousand] years.
        Grey whales migrate between the Arctic and [Mexico|Greece].
        """,
    ),
    _topic(
        "vaccines",
        "how vaccines work; the history of vaccines; what is in a vaccine; diseases that vaccines"
        " ended; how vaccines are given; what antibodies do after a vaccine; kinds of vaccines;"
        " people who made vaccines",
        """
        Vaccines train the [immune|digestive] system.
        The first vaccine protected people from [smallpox|baldness].
        Edward Jenner tested his vaccine in [1796|1946].
        Thanks to vaccines, smallpox was declared gone in [1980|1820].
        An mRNA vaccine carries the plan of a [protein|vitamin].
        Louis Pasteur made a vaccine against [rabies|scurvy].
        A vaccine booster renews the [protection|skeleton] of the body.
        Jonas Salk developed a vaccine against [polio|diabetes].
        Live vaccines hold [weakened|enlarged] germs.
        The flu vaccine is updated each [year|century].
        Antibodies after a vaccine come from B [cells|bones].
        A vaccine against measles is given [twice|hourly].
        """,
    ),
    _topic(
        "the piano",
        "how a piano makes its sound; the history of the piano; the keys of a piano;"
        " what the pedals of a piano do; upright and grand pianos; how a piano is built;"
        " the strings of a piano; the name of the piano",
        """
        A modern piano has [88|64] keys.
        The first piano was built in [Italy|Finland].
        Piano strings are struck by [hammers|feathers].
        The hammers of a piano are covered with [felt|brass].
        The right pedal of a piano lifts the [dampers|lid].
        The piano was invented around [1700|1350].
        An upright piano has [vertical|circular] strings.
        Piano strings are made of [steel|cotton].
        The black piano keys come in groups of two and [three|seven].
        The full name of the piano means soft and [loud|old].
        A concert grand piano weighs about five hundred [kilograms|grams].
        The builder of the first piano was [Cristofori|Galileo].
        """,
    ),
    _topic(
        "chess",
        "the rules of chess; how chess pieces move; where chess comes from;"
        " how a game of chess ends; what chess pieces are worth; special moves in chess;"
        " chess and computers;"
        " how a chess board is set up",
        """
        A chess board has [64|81] squares.
        A bishop in chess moves along [diagonals|circles].
        The chess piece that jumps over others is the [knight|king].
        Each chess player starts with eight [pawns|queens].
        Castling in chess moves the king and a [rook|bishop].
        A chess pawn that reaches the last rank is [promoted|burned].
        The first move in chess belongs to [White|Black].
        Chess came to Europe by way of [Persia|Canada].
        A stalemate in chess is a [draw|loss].
        The computer Deep Blue beat a chess champion in [1997|1937].
        A rook in chess is worth about [five|fifty] pawns.
        The strongest chess piece is the [queen|pawn].
        """,
    ),
    _topic(
        "glaciers",
        "how glaciers form; how glaciers move; where glaciers are found;"
        " what glaciers leave behind; why the ice of glaciers looks blue;"
        " how glaciers shape valleys; icebergs and glaciers;"
        " what glacier ice tells us",
        """
        Glaciers form from compressed [snow|sand].
        Glaciers hold most of the [fresh|salt] water of the world.
        A glacier moves under its own [weight|magnetism].
        Most glacier ice lies in [Antarctica|Scotland].
        Glacier ice looks blue as it absorbs [red|blue] light.
        A ridge of stones left by a glacier is a [moraine|lagoon].
        Fjords are valleys that were [carved|painted] by glaciers.
        Icebergs break off a glacier by [calving|grafting].
        Glaciers cover about [ten|seventy] percent of the land.
        Deep cracks in a glacier are called [crevasses|estuaries].
        Old air in glacier ice is kept in [bubbles|leaves].
        A valley made by a glacier is shaped like a [U|Z].
        """,
    ),
    _topic(
        "batteries",
        "how a battery works; the history of the battery; batteries in phones and cars;"
        " how batteries are charged; why batteries wear out; what batteries are made of;"
        " the voltage of batteries; batteries and the weather",
        """
        A battery turns [chemical|nuclear] energy into electricity.
        Alessandro Volta built the first battery in [1800|1950].
        Electrons leave a battery at its [negative|positive] pole.
        Starter batteries of cars hold [lead|gold] and acid.
        Phones run on [lithium|sodium] batteries.
        A small AA battery gives about [1.5|150] volts.
        Batteries wear out faster in great [heat|silence].
        The electrolyte of a battery conducts [ions|sound].
        Batteries in series add up their [voltages|colours].
        A battery is charged with [direct|alternating] current.
        Cold weather [lowers|triples] the power of a battery.
        Lithium for batteries is mined in [Chile|Malta].
        """,
    ),
    _topic(
        "photography",
        "how a camera takes photos; what the aperture of a camera does; photos of fast motion;"
        " lenses for a camera; the history of photos; light for photos;"
        " how digital cameras store photos; how to take sharp photos",
        """
        A wide aperture lets [more|less] light into the camera.
        A fast shutter [freezes|smears] motion in a photo.
        A high ISO value makes a photo [grainy|smooth].
        A wide aperture gives a photo a [shallow|deep] zone of focus.
        The oldest photo that exists is from the [1820s|1620s].
        A prime lens of a camera has a [fixed|double] focal length.
        Digital cameras catch light with a [sensor|mirror].
        A tripod keeps a camera [steady|dry].
        A large f-number of a camera means a [small|round] aperture.
        Raw files keep [more|less] of a photo than JPEG files.
        A long lens makes far things in a photo look [near|wet].
        The golden hour for photos comes just after [sunrise|midnight].
        """,
    ),
)
