package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	echoQueue = "bench-go-echo"
	replyTo   = "amq.rabbitmq.reply-to"
	echoed    = 1
)

type request struct {
	Args   []int          `json:"args"`
	Kwargs map[string]any `json:"kwargs"`
}

type reply struct {
	Result int     `json:"result"`
	Error  *string `json:"error"`
}

// route is how requests and replies travel.
type route struct {
	exchange string // of requests, and of replies on Nameko's wire
	key      string // of requests
	queue    string // of requests
	nameko   bool
}

// chosenRoute is Go's own best way, or Nameko's wire: topic exchange, durable queues, a reply queue of the
// caller's own that outlives a reconnect, mandatory requests, acknowledged replies.
func chosenRoute() route {
	if os.Getenv("BENCH_WIRE") == "nameko" {
		return route{"nameko-rpc", "bench_go.echo", "rpc-bench_go", true}
	}
	return route{"", echoQueue, echoQueue, false}
}

// rpcServer answers each request on its reply-to address, then acks it. One goroutine: a channel
// writes under a lock, so that more of them gain nothing for an echo.
func rpcServer() {
	way := chosenRoute()
	channel := openChannel()
	must(channel.Qos(prefetch, 0, false))
	queue, err := channel.QueueDeclare(way.queue, way.nameko, !way.nameko, false, false, nil)
	must(err)
	replyExchange := ""
	if way.nameko {
		must(channel.ExchangeDeclare(way.exchange, "topic", true, false, false, false, nil))
		must(channel.QueueBind(way.queue, "bench_go.*", way.exchange, false, nil))
		replyExchange = way.exchange
	}
	deliveries, err := channel.Consume(queue.Name, "", false, false, false, false, nil)
	must(err)
	exitOnTerminate()
	say("ready", nil)
	for delivery := range deliveries {
		var asked request
		must(json.Unmarshal(delivery.Body, &asked))
		body, err := json.Marshal(reply{Result: asked.Args[0]})
		must(err)
		must(channel.PublishWithContext(context.Background(), replyExchange, delivery.ReplyTo, false, false, amqp.Publishing{
			ContentType: contentType, CorrelationId: delivery.CorrelationId, Body: body,
		}))
		must(delivery.Ack(false))
	}
}

// caller matches replies to the calls that wait for them.
type caller struct {
	channel *amqp.Channel
	way     route
	replyTo string
	lock    sync.Mutex
	last    uint64
	waiting map[string]chan []byte
}

func newCaller() *caller {
	c := &caller{
		channel: openChannel(), way: chosenRoute(), replyTo: replyTo, waiting: make(map[string]chan []byte),
	}
	queue := replyTo
	if c.way.nameko {
		c.replyTo = fmt.Sprintf("bench-go-%d-%d", os.Getpid(), time.Now().UnixNano())
		queue = "rpc.reply-bench_go-" + c.replyTo
		_, err := c.channel.QueueDeclare(queue, true, false, false, false, amqp.Table{"x-expires": int32(300000)})
		must(err)
		must(c.channel.QueueBind(queue, c.replyTo, c.way.exchange, false, nil))
	}
	replies, err := c.channel.Consume(queue, "", !c.way.nameko, false, false, false, nil)
	must(err)
	go func() {
		for delivery := range replies {
			c.lock.Lock()
			answer := c.waiting[delivery.CorrelationId]
			delete(c.waiting, delivery.CorrelationId)
			c.lock.Unlock()
			answer <- delivery.Body
			if c.way.nameko {
				must(delivery.Ack(false))
			}
		}
	}()
	return c
}

func (c *caller) call(argument int) int {
	body, err := json.Marshal(request{Args: []int{argument}, Kwargs: map[string]any{}})
	must(err)
	answer := make(chan []byte, 1)
	c.lock.Lock()
	c.last++
	id := strconv.FormatUint(c.last, 10)
	c.waiting[id] = answer
	c.lock.Unlock()
	message := amqp.Publishing{ContentType: contentType, CorrelationId: id, ReplyTo: c.replyTo, Body: body}
	if c.way.nameko {
		message.ContentEncoding = "utf-8"
		message.Headers = amqp.Table{"nameko.call_id_stack": []any{"bench_go.call." + id}}
		message.Expiration = "30000"
	}
	must(c.channel.PublishWithContext(context.Background(), c.way.exchange, c.way.key, c.way.nameko, false, message))
	var answered reply
	must(json.Unmarshal(<-answer, &answered))
	return answered.Result
}

// closedLoop keeps inFlight goroutines calling for so long, and returns the latencies.
func closedLoop(c *caller, inFlight int, seconds float64) []time.Duration {
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	measured := make([][]time.Duration, inFlight)
	var group sync.WaitGroup
	for slot := range measured {
		group.Add(1)
		go func(slot int) {
			defer group.Done()
			for {
				sent := time.Now()
				answer := c.call(echoed)
				received := time.Now()
				measured[slot] = append(measured[slot], received.Sub(sent))
				if answer != echoed {
					must(fmt.Errorf("the echo of %d was %d", echoed, answer))
				}
				if received.After(end) {
					return
				}
			}
		}(slot)
	}
	group.Wait()
	var all []time.Duration
	for _, latencies := range measured {
		all = append(all, latencies...)
	}
	return all
}

func rpcClient() {
	options := flag.NewFlagSet("rpc-client", flag.ExitOnError)
	levels := options.String("in-flight", "", "calls in flight, one level or several with commas")
	seconds := options.Float64("seconds", 0, "measured span of each level")
	warmUp := options.Float64("warm-up", 0, "seconds before it")
	must(options.Parse(os.Args[2:]))
	c := newCaller()
	for _, level := range strings.Split(*levels, ",") {
		inFlight, err := strconv.Atoi(level)
		must(err)
		closedLoop(c, inFlight, *warmUp)
		say("measuring", map[string]any{"in_flight": inFlight})
		used, started := cpuUsed(), time.Now()
		latencies := closedLoop(c, inFlight, *seconds)
		elapsed, cpu := time.Since(started), cpuUsed()-used
		sort.Slice(latencies, func(i, j int) bool { return latencies[i] < latencies[j] })
		say("sample", map[string]any{
			"in_flight":    inFlight,
			"count":        len(latencies),
			"elapsed_s":    elapsed.Seconds(),
			"p50_ms":       quantileMs(latencies, 0.50),
			"p99_ms":       quantileMs(latencies, 0.99),
			"p999_ms":      quantileMs(latencies, 0.999),
			"client_cpu_s": cpu,
		})
	}
}

// quantileMs is the nearest-rank quantile of ordered latencies, in milliseconds.
func quantileMs(ordered []time.Duration, share float64) float64 {
	rank := int(math.Ceil(share*float64(len(ordered)))) - 1
	if rank < 0 {
		rank = 0
	}
	return ordered[rank].Seconds() * 1e3
}

func cpuUsed() float64 {
	var usage syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}
