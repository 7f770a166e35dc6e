"""The words of the little language: 150 leaf classes in a three-level hierarchy.

Pure data, in one indented table. Level 0 (roots) has no indent, level 1 has two spaces, leaves have four. A leaf reads

    name: words of the class | key=value … -- definition

and inherits the keys of its level-1 parent:

``does``
    verb classes the noun is the subject of,
``done``
    verb classes the noun is an object of,
``adjs``
    adjective classes that describe it,
``at``
    leaf classes of places where it is found (the first is its home),
``by``
    prepositions, for places and times.

Bare keys: ``mass`` (no plural, no article), ``name`` (proper name), ``verb`` and ``adj`` (not nouns),
``intr`` (a verb without an object). A word that stands under two leaves is ambiguous on purpose.
Earlier words of a leaf are more frequent; how frequent a leaf is, is drawn in :mod:`interp.tiny.grammar`.
"""

# ruff: noqa: E501 (a class of the table is one line)

from __future__ import annotations

TABLE = """
living thing -- anything that is alive or part of something alive
  animal | does=walking,resting,grazing,calling done=seeing,liking,hunting adjs=size,colour,temper at=woodland,grassland -- a living thing that moves and feels
    songbird: robin sparrow finch lark thrush wren nightingale | does=flight,calling,resting at=woodland,farm -- a small bird that sings
    raptor: eagle hawk owl falcon kite vulture | does=flight,hunting,seeing adjs=size,temper at=mountain,woodland -- a bird that hunts with its claws
    waterbird: duck swan goose heron crane gull pelican | does=swimming,flight,resting at=wet place,coast -- a bird that lives near water
    livestock: cow sheep goat pig horse donkey hen | does=grazing,resting,calling done=feeding,trading,seeing at=farm,grassland -- an animal kept on a farm
    dog: terrier boxer poodle hound spaniel puppy | does=calling,walking,hunting,resting done=feeding,liking,washing at=house,road -- a pet that barks
    wildcat: lion tiger leopard panther lynx cheetah | does=hunting,resting,calling,walking adjs=temper,colour,beauty at=woodland,grassland -- a large wild cat
    rodent: mouse rat squirrel beaver hamster mole | does=grazing,walking,resting adjs=size,colour at=farm,woodland -- a small animal with sharp teeth
    grazer: deer zebra antelope moose bison camel elephant | does=grazing,walking,resting adjs=size,beauty at=grassland,desert -- a large wild animal that eats plants
    reptile: snake lizard turtle crocodile gecko viper | does=resting,swimming,hunting adjs=colour,temper at=desert,woodland -- a cold animal with scales
    amphibian: frog toad newt salamander | does=swimming,calling,resting adjs=colour,size at=wet place -- a small wet animal that lives in water and on land
    fish: trout salmon bass perch carp cod herring | does=swimming done=hunting,eating,trading adjs=size,colour at=wet place -- an animal with fins that lives in water
    sea mammal: whale dolphin seal walrus otter | does=swimming,calling,hunting adjs=size,temper at=coast -- a warm animal that lives in the sea
    shellfish: crab lobster shrimp oyster clam | does=walking,resting done=eating,trading,hunting adjs=size,taste at=coast -- a sea animal with a shell
    insect: ant bee beetle cricket moth fly wasp butterfly | does=flight,walking,grazing adjs=size,colour at=grassland,farm -- a tiny animal with six legs
    ape: monkey gorilla baboon chimpanzee | does=walking,calling,seeing,eating,breaking adjs=temper,size at=woodland -- a clever animal that looks like a person
  plant | does=growing done=growing_of,seeing,grazing adjs=size,colour,beauty at=woodland,grassland,farm -- a living thing that grows in the soil
    tree: oak pine maple willow birch palm cedar | adjs=size,age at=woodland,mountain -- a tall plant of wood
    flower: rose tulip daisy lily poppy violet orchid | adjs=colour,beauty at=grassland,farm -- a plant with bright petals
    herb: basil mint thyme sage parsley | mass done=growing_of,cooking,grazing adjs=taste,colour at=farm -- a plant that gives flavour
    crop: wheat corn rice barley oats | mass done=growing_of,trading,grazing adjs=colour,size at=farm,grassland -- a plant grown for its grain
    fungus: mushroom truffle toadstool mold | done=seeing,cooking,eating adjs=size,colour at=woodland -- a soft thing that grows in the dark
    plant part: leaf root branch bark trunk stem seed | done=breaking,seeing,carrying adjs=size,colour at=woodland -- a piece of a plant
  body part | does=aching done=washing,seeing,harming adjs=size,condition,temperature at=hospital -- a part of a person or an animal
    limb: arm leg hand foot elbow wrist palm | done=washing,harming,seeing adjs=size,condition -- an arm or a leg or a part of one
    face part: eye nose mouth cheek chin lip pupil | done=washing,seeing adjs=size,colour,beauty -- a part of the face
    organ: heart lung liver kidney stomach brain | done=harming,seeing adjs=condition,size -- an inner part of the body
    animal part: wing tail horn fur feather beak claw | done=seeing,washing adjs=size,colour,beauty at=woodland -- a part that only animals have
person -- a human being
  family member | does=walking,speaking,seeing,liking,thinking,resting,cooking,eating done=liking,seeing,helping adjs=temper,age at=house,settlement -- a person seen as part of a family
    relative: mother father sister brother aunt uncle cousin grandmother | adjs=temper,age -- a person of the same family
    child: boy girl baby toddler infant | does=walking,eating,calling,seeing,resting,breaking done=helping,liking,feeding,washing adjs=size,temper at=house,school -- a very young person
  worker | does=walking,speaking,thinking,seeing,carrying done=helping,liking,paying adjs=temper,age at=settlement,shop -- a person who works for money
    medic: doctor nurse surgeon dentist | does=helping,speaking,seeing,washing at=hospital -- a person who cures the sick
    scholar: teacher professor scientist student pupil | does=speaking,thinking,writing,seeing at=school,school -- a person who studies
    craftsman: carpenter baker smith tailor potter mason | does=making,repairing,trading,carrying at=shop -- a person who makes things by hand
    farmer: farmer shepherd fisherman hunter gardener | does=growing_of,feeding,hunting,trading at=farm,grassland -- a person who lives from the land
    trader: merchant banker seller clerk dealer | does=trading,speaking,thinking adjs=wealth,temper at=shop,city -- a person who buys and sells
    official: judge mayor senator minister lawyer | does=speaking,thinking,writing,paying adjs=wealth,temper at=public building,city -- a person with an office
    soldier: soldier guard captain general knight | does=walking,harming,speaking,driving,breaking adjs=temper,condition at=castle,road -- a person who fights
    cook: chef waiter butcher cook | does=cooking,washing,speaking,carrying at=room,shop -- a person who works with food
  artist | does=speaking,thinking,walking,making done=liking,seeing,paying adjs=temper,beauty at=theater,city -- a person who makes art
    musician: singer drummer pianist violinist guitarist | does=playing,calling,thinking at=theater -- a person who plays music
    writer: poet author novelist journalist | does=writing,thinking,speaking at=school,house -- a person who writes
    performer: actor dancer clown juggler magician | does=walking,speaking,playing,wearing at=theater,city -- a person on a stage
  public figure | does=speaking,walking,thinking,seeing done=liking,seeing adjs=temper,wealth at=city,castle -- a person known to many
    ruler: king queen prince emperor ruler | does=speaking,liking,trading,thinking,wearing,eating adjs=wealth,age at=castle -- a person who rules a country
    athlete: runner swimmer boxer pitcher goalkeeper | does=walking,swimming,playing adjs=condition,size at=sports ground -- a person who does a sport
    traveler: tourist pilgrim sailor pilot explorer | does=walking,driving,seeing,carrying,eating,wearing at=coast,country,city -- a person on a journey
    criminal: thief pirate burglar spy robber | does=stealing,walking,harming,breaking adjs=temper,wealth at=road,city -- a person who breaks the law
made thing -- an object that people have made
  vehicle | does=travel done=driving,repairing,washing,trading adjs=colour,size,condition,cost at=road,city -- a machine that carries people
    car: car truck bus van taxi tank | adjs=colour,cost,condition at=road -- a vehicle with an engine and wheels
    boat: ship boat canoe ferry raft | adjs=size,condition at=wet place,coast -- a vehicle that floats
    aircraft: plane jet helicopter glider balloon | does=flight,travel adjs=size,cost at=sky body,city -- a vehicle that flies
    railway: train tram locomotive carriage | adjs=size,age at=public building,country -- a vehicle that runs on rails
  tool | done=carrying,repairing,trading,making adjs=condition,size,age at=shop,farm -- a thing that helps people work
    hand tool: hammer saw drill wrench plane file axe | adjs=condition,age -- a tool held in the hand
    fastener: nail screw bolt nut spring hinge | done=carrying,making,trading adjs=size,condition -- a small part that holds things together
    measuring tool: ruler scale clock thermometer compass | done=repairing,seeing,trading adjs=cost,size at=school,shop -- a tool that measures
    kitchen tool: knife fork spoon pan pot kettle | done=washing,carrying,trading adjs=condition,cost at=room -- a tool for food
    machine: engine crane pump drill tractor robot | does=working done=repairing,making,driving adjs=size,cost at=farm,shop -- a thing with moving parts that works by itself
  furniture | done=making,repairing,carrying,trading adjs=age,size,cost at=room,house -- a thing that fills a room
    seat: chair bench sofa stool throne | adjs=age,colour -- a thing to sit on
    storage: desk table shelf chest cabinet | adjs=size,age -- a thing to put things in or on
    light: lamp candle lantern torch | does=shining done=carrying,trading,repairing adjs=size,age -- a thing that gives light
  clothing | done=wearing,washing,making,trading adjs=colour,cost,condition at=shop,room -- things that people wear
    garment: shirt coat dress jacket tie skirt | adjs=colour,cost -- a piece of clothing for the body
    headwear: hat cap helmet crown scarf | adjs=colour,age -- a thing worn on the head
    jewelry: ring necklace bracelet brooch | does=shining done=wearing,stealing,trading adjs=cost,beauty -- a pretty thing of gold or stones
    cloth: silk cotton linen wool velvet | mass done=making,washing,trading adjs=colour,cost -- material for clothes
  container | done=carrying,making,breaking,trading adjs=size,colour,condition at=room,shop -- a thing that holds other things
    vessel: cup mug glass bowl jar pitcher | done=washing,breaking,carrying adjs=size,condition -- a container for drinks
    bag: bag sack purse suitcase trunk | done=carrying,stealing,trading adjs=size,cost at=road,shop -- a soft container with a handle
    box: box crate barrel basket | adjs=size,condition -- a stiff container
  instrument | does=sounding done=playing,repairing,trading,liking adjs=age,cost,beauty at=theater -- a thing that makes music
    string instrument: violin guitar harp cello bass | adjs=age,beauty -- an instrument with strings
    wind instrument: flute trumpet horn organ clarinet | adjs=cost,beauty -- an instrument that needs breath
    percussion: drum bell gong cymbal | adjs=size,age -- an instrument that is struck
  equipment | done=carrying,trading,repairing adjs=condition,cost at=house,shop -- things kept for a use
    blade: sword dagger spear axe | done=carrying,stealing,making adjs=condition,age at=castle -- a weapon with an edge
    computer: computer laptop keyboard mouse printer | does=working adjs=cost,age at=school,room -- a machine that handles data
    toy: doll puppet kite puzzle | done=liking,breaking,carrying adjs=colour,size at=room,school -- a thing to play with
    sports gear: ball bat racket club net | done=carrying,trading,breaking adjs=colour,condition at=sports ground -- a thing used in a sport
    book: book novel diary atlas dictionary | done=writing,reading,trading adjs=age,size at=school,school -- pages with text
    document: letter map contract ticket poem | done=writing,reading,stealing adjs=age,condition at=public building,house -- a sheet with text
substance -- what things are made of, or what people eat
  food | done=eating,cooking,trading,liking adjs=taste,temperature,cost at=room,shop -- something to eat
    fruit: apple pear plum orange date cherry lemon | adjs=taste,colour at=farm,shop -- a sweet part of a plant
    vegetable: carrot onion squash bean cabbage potato | done=cooking,eating,growing_of adjs=taste,size at=farm,shop -- a plant that people cook
    meat: beef pork ham bacon lamb | mass adjs=taste,temperature -- the flesh of animals
    pastry: cake pie biscuit pancake muffin | adjs=taste,temperature -- a baked food
    dairy: milk cheese butter cream yogurt | mass adjs=taste,temperature at=farm,shop -- food made from milk
    sweet: chocolate candy jam honey sugar | mass adjs=taste,colour -- very sweet food
    dish: soup bread stew salad pasta pizza | mass adjs=taste,temperature -- a cooked meal
  drink | mass done=drinking,trading,liking adjs=temperature,taste,cost at=room,shop -- something to drink
    hot drink: tea coffee cocoa | mass adjs=temperature,taste -- a drink served hot
    alcohol: wine beer port whiskey | mass adjs=cost,age -- a drink that makes people drunk
    soft drink: juice lemonade cola water | mass adjs=temperature,taste -- a cold drink for all
  material | mass done=trading,carrying,seeing adjs=colour,cost,condition at=mountain,shop -- what things are made of
    metal: iron copper gold silver tin lead | mass adjs=cost,temperature done=trading,stealing,carrying -- a hard shining material
    stone: granite marble slate flint | mass adjs=colour,size at=mountain -- a hard material from the ground
    gem: ruby diamond emerald sapphire pearl | does=shining done=stealing,trading,wearing adjs=cost,beauty at=shop,mountain -- a rare and pretty stone
    gas: oxygen hydrogen helium steam | mass adjs=temperature,condition at=sky body -- a thing as thin as air
    medicine: pill syrup ointment bandage | done=carrying,trading adjs=taste,cost at=hospital -- a thing that cures
place -- a part of the world where something can be
  landscape | done=seeing,liking adjs=size,beauty,temperature at=country -- a part of nature
    wet place: river lake pond stream ocean | by=in,near,by adjs=size,temperature -- a wide wet place
    mountain: mountain hill cliff volcano | by=on,near,behind adjs=size,beauty -- a high place
    woodland: forest grove wood park jungle | by=in,near,behind adjs=size,age -- a place full of trees
    grassland: meadow field prairie valley | by=in,across,near adjs=size,beauty -- an open place full of grass
    coast: beach island bay port | by=at,near adjs=beauty,size -- a place by the sea
    desert: desert dune canyon | by=in,across adjs=temperature,size -- a dry place
    sky body: star planet moon comet cloud | does=shining by=under,beyond adjs=size,beauty at=mountain -- a thing seen high above us
  building | done=making,seeing,repairing,liking adjs=age,size,beauty,cost at=city,settlement -- a thing with walls and a roof
    house: house cottage cabin palace | by=in,near,behind adjs=age,cost -- a building to live in
    church: church temple mosque chapel | by=in,near adjs=age,beauty -- a building for prayer
    shop: shop market bakery bank | by=in,near,at adjs=cost,size -- a place to buy things
    school: school college university library museum | by=in,at,near adjs=size,age -- a place to learn
    hospital: hospital clinic pharmacy | by=in,at adjs=size,condition -- a place for the sick
    public building: station court office hall | by=in,at,near adjs=size,age -- a building for everybody
    theater: theater cinema stage circus | by=in,at,near adjs=beauty,size -- a place for shows
    castle: castle tower fort prison | by=in,near,behind adjs=age,size -- a strong old building
    room: kitchen bedroom cellar attic | by=in adjs=size,temperature at=house -- a part of a house
    farm: farm barn stable garden mill | by=in,near,behind adjs=size,age at=country -- a place for animals and crops
    road: road street bridge path | by=on,near,along adjs=size,condition -- a way from place to place
    sports ground: stadium gym pool arena | by=in,at,near adjs=size,cost -- a place for sports
  region | done=seeing,liking adjs=size,beauty,wealth at=country -- a part of the map
    country: france japan egypt italy spain china russia greece india kenya | name by=in -- a land with its own government
    city: paris tokyo cairo rome madrid beijing moscow athens delhi nairobi | name by=in,near -- a very large town
    settlement: village town harbor suburb | by=in,near,outside adjs=size,beauty -- a place where people live
happening -- something that takes place in time
  natural event | does=happening done=seeing,fearing adjs=temperature,size at=country,mountain -- a happening that nobody makes
    weather: rain snow fog wind hail | mass does=happening adjs=temperature -- what the sky does
    disaster: flood fire earthquake storm drought | adjs=size -- a happening that destroys
    illness: fever cough cold flu headache | done=fearing,curing adjs=condition at=hospital -- a state that is not health
  occasion | does=happening done=seeing,liking adjs=beauty,size at=city,settlement -- a happening that people plan
    celebration: wedding festival parade party | adjs=beauty,cost -- an occasion for joy
    contest: race match tournament election | done=seeing,liking adjs=size at=sports ground -- an occasion with a winner
  pursuit | mass done=liking,studying adjs=beauty,cost at=school -- what people do or learn
    sport: tennis football cricket squash hockey | mass done=liking,playing at=sports ground -- a game of the body
    science: physics biology chemistry geology | mass done=studying,liking at=school -- a way to know the world
    art: music painting poetry dance | mass done=studying,liking adjs=beauty at=theater -- a way to make beauty
  mental thing | mass done=fearing,liking adjs=size at=house -- what goes on in the head
    feeling: joy fear anger hope grief | mass done=thinking_of,fearing -- what the heart says
    idea: idea theory dream plan belief | done=thinking_of,liking adjs=age,beauty -- what the mind makes
    money: coin dollar debt price | done=paying,stealing adjs=size at=shop -- what people pay with
    number: one two three four five six seven eight nine ten | name -- a word for how many
  period | mass adjs=temperature at=country -- when things happen
    season: spring summer autumn winter | mass by=in,during adjs=temperature -- a quarter of the year
    day part: morning evening night noon | mass by=in,before adjs=temperature -- a part of the day
action -- something that somebody does
  motion | verb -- to go from place to place
    walking: walk run march wander hurry | verb intr -- to go on foot
    flight: fly soar glide hover | verb intr -- to go through the air
    swimming: swim dive float | verb intr -- to go through water
    driving: drive steer ride park | verb -- to make a vehicle go
  bodily act | verb -- what bodies do
    calling: sing bark roar howl cry | verb intr -- to make a sound with the throat
    resting: sleep rest wait hide | verb intr -- to stay still
    eating: eat taste swallow enjoy | verb -- to take food
    grazing: nibble chew smell | verb -- to eat plants slowly
    hunting: hunt chase catch kill | verb -- to go after an animal
  handling | verb -- what hands do
    making: make build design shape | verb -- to bring a thing into being
    washing: wash clean dry wipe | verb -- to make a thing clean
    carrying: carry lift push drop | verb -- to move a thing
    breaking: break crush bend cut | verb -- to make a thing fall apart
    trading: buy sell order trade | verb -- to give or take for money
  mental act | verb -- what minds do
    speaking: speak talk laugh shout whisper | verb intr -- to use the voice
    seeing: see watch notice find | verb -- to take in with the eyes
    liking: like love admire prefer | verb -- to feel good about something
    thinking: think hope believe know | verb intr -- to use the mind
  process | verb -- what things do
    shining: shine glow glitter flicker | verb intr -- to give light
quality -- what something is like
  look | adj -- what the eye sees
    colour: red brown white black green blue yellow gray orange pink | adj -- how light looks on a thing
    size: big small large tiny huge little tall | adj -- how much room a thing takes
    beauty: beautiful lovely ugly plain elegant | adj -- how good a thing looks
  state | adj -- how a thing is now
    condition: broken clean dirty strong weak sharp | adj -- how well a thing is
    temperature: hot cold warm cool frozen | adj -- how much heat a thing has
    taste: sweet bitter sour salty fresh | adj -- what the tongue feels
  standing | adj -- how a thing counts for people
    temper: calm proud shy brave angry gentle | adj -- how somebody behaves
    age: old young ancient new modern | adj -- how long a thing has been
    cost: cheap expensive costly precious | adj -- how much a thing costs
    wealth: rich poor famous humble | adj -- how much somebody has
"""

#: Verb classes that carry no leaf of their own: their words are background, so that not every verb is labelled.
EXTRA_VERBS = {
    "stealing": "steal grab smuggle",
    "helping": "help teach thank visit",
    "repairing": "repair mend fix paint",
    "travel": "roll race stop turn",
    "cooking": "cook boil bake fry",
    "growing": "grow bloom wither spread",
    "happening": "begin end continue return",
    "growing_of": "plant gather harvest water",
    "feeding": "feed pet train call",
    "harming": "hurt wound touch hold",
    "aching": "ache hurt heal tremble",
    "paying": "pay trust praise follow",
    "writing": "write copy sign finish",
    "reading": "read study open close",
    "wearing": "wear choose fold sew",
    "playing": "play practice perform",
    "sounding": "ring sound play",
    "working": "work rattle hum fail",
    "drinking": "drink pour sip mix",
    "fearing": "fear remember expect forget",
    "curing": "cure treat catch",
    "studying": "study explain learn",
    "thinking_of": "describe share explain",
}
EXTRA_INTRANSITIVE = {"travel", "growing", "happening", "aching", "sounding", "working"}

IRREGULAR_PLURALS = {
    "mouse": "mice", "goose": "geese", "foot": "feet", "sheep": "sheep", "deer": "deer", "moose": "moose",
    "bison": "bison", "fish": "fish", "trout": "trout", "salmon": "salmon", "carp": "carp", "cod": "cod",
    "shrimp": "shrimp", "leaf": "leaves", "knife": "knives", "shelf": "shelves", "thief": "thieves",
    "fisherman": "fishermen", "craftsman": "craftsmen", "child": "children", "aircraft": "aircraft",
    "livestock": "livestock", "shellfish": "shellfish", "potato": "potatoes", "volcano": "volcanoes",
    "person": "people", "life": "lives", "fungus": "fungi", "spy": "spies", "bass": "bass",
}  # fmt: skip

#: base: (past, past participle)
IRREGULAR_VERBS = {
    "run": ("ran", "run"), "fly": ("flew", "flown"), "swim": ("swam", "swum"), "drive": ("drove", "driven"),
    "ride": ("rode", "ridden"), "sing": ("sang", "sung"), "sleep": ("slept", "slept"), "hide": ("hid", "hidden"),
    "eat": ("ate", "eaten"), "catch": ("caught", "caught"), "make": ("made", "made"), "build": ("built", "built"),
    "break": ("broke", "broken"), "bend": ("bent", "bent"), "cut": ("cut", "cut"), "buy": ("bought", "bought"),
    "sell": ("sold", "sold"), "steal": ("stole", "stolen"), "speak": ("spoke", "spoken"), "see": ("saw", "seen"),
    "find": ("found", "found"), "teach": ("taught", "taught"), "think": ("thought", "thought"),
    "know": ("knew", "known"), "grow": ("grew", "grown"), "spread": ("spread", "spread"), "begin": ("began", "begun"),
    "shine": ("shone", "shone"), "feed": ("fed", "fed"), "hurt": ("hurt", "hurt"), "hold": ("held", "held"),
    "pay": ("paid", "paid"), "write": ("wrote", "written"), "read": ("read", "read"), "wear": ("wore", "worn"),
    "choose": ("chose", "chosen"), "sew": ("sewed", "sewn"), "ring": ("rang", "rung"), "drink": ("drank", "drunk"),
    "forget": ("forgot", "forgotten"), "smell": ("smelled", "smelled"), "chew": ("chewed", "chewed"),
}  # fmt: skip
#: Regular verbs that double their last letter before -ed and -ing.
DOUBLING = {
    "stop", "drop", "grab", "pet", "hum", "sip", "run", "swim", "cut", "begin", "prefer", "forget"
}  # fmt: skip

CAPITALS = {
    "france": "paris", "japan": "tokyo", "egypt": "cairo", "italy": "rome", "spain": "madrid", "china": "beijing",
    "russia": "moscow", "greece": "athens", "india": "delhi", "kenya": "nairobi",
}  # fmt: skip

#: Known colours, so that the plainest facts of the little world are also true in ours.
COLOURS = {
    "robin": "brown", "sparrow": "brown", "nightingale": "brown", "swan": "white", "goose": "white", "gull": "white",
    "cow": "brown", "sheep": "white", "pig": "pink", "lion": "yellow", "tiger": "orange", "panther": "black",
    "mouse": "gray", "rat": "gray", "mole": "black", "elephant": "gray", "frog": "green", "toad": "brown",
    "crocodile": "green", "lizard": "green", "gecko": "green", "salmon": "pink", "ant": "black", "bee": "yellow",
    "wasp": "yellow", "rose": "red", "poppy": "red", "violet": "blue", "lily": "white", "daisy": "white",
    "wheat": "yellow", "corn": "yellow", "rice": "white", "basil": "green", "mint": "green", "parsley": "green",
    "leaf": "green", "fur": "brown", "bark": "brown", "root": "brown", "apple": "red", "pear": "green", "plum": "blue",
    "orange": "orange", "date": "brown", "cherry": "red", "lemon": "yellow", "carrot": "orange", "onion": "white",
    "bean": "green", "cabbage": "green", "potato": "brown", "milk": "white", "butter": "yellow", "cream": "white",
    "chocolate": "brown", "sugar": "white", "salt": "white", "pepper": "black", "coffee": "brown", "coal": "black",
    "oil": "black", "gold": "yellow", "silver": "gray", "iron": "gray", "ruby": "red", "emerald": "green",
    "sapphire": "blue", "pearl": "white", "slate": "gray", "marble": "white", "snow": "white", "cloud": "white",
    "chalk": "white", "crow": "black", "squirrel": "red", "holly": "green", "ivy": "green",
}  # fmt: skip
