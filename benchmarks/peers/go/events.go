package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	eventExchange = "bench-go.events"
	eventType     = "departed"
	publishWindow = 256
)

type event struct {
	Burst      int     `json:"burst"`
	Total      int     `json:"total"`
	Carrier    string  `json:"carrier"`
	Flight     int     `json:"flight"`
	TailNumber string  `json:"tail_number"`
	DepDelay   float64 `json:"dep_delay"`
}

func makeEvent(burst, number, total int) event {
	return event{burst, total, "UA", number, "N14228", 2}
}

func declareEventExchange(channel *amqp.Channel) {
	must(channel.ExchangeDeclare(eventExchange, amqp.ExchangeTopic, true, false, false, false, nil))
}

// eventHandler counts events from a durable queue, each acked once handled. BENCH_QUEUE_TYPE
// says which: classic or quorum.
func eventHandler() {
	kind := os.Getenv("BENCH_QUEUE_TYPE")
	channel := openChannel()
	must(channel.Qos(prefetch, 0, false))
	declareEventExchange(channel)
	queue, err := channel.QueueDeclare("bench-go-departed-"+kind, true, false, false, false, amqp.Table{"x-queue-type": kind})
	must(err)
	must(channel.QueueBind(queue.Name, eventType, eventExchange, false, nil))
	deliveries, err := channel.Consume(queue.Name, "", false, false, false, false, nil)
	must(err)
	exitOnTerminate()
	say("ready", nil)
	handled, totals := map[int]int{}, map[int]int{}
	for delivery := range deliveries {
		var got event
		must(json.Unmarshal(delivery.Body, &got))
		handled[got.Burst]++
		if got.Total > 0 {
			totals[got.Burst] = got.Total
		}
		if handled[got.Burst] == totals[got.Burst] {
			say("handled", map[string]any{"burst": got.Burst, "count": handled[got.Burst], "at": wallClock()})
		}
		must(delivery.Ack(false))
	}
}

// eventPublisher publishes what standard input orders, with deferred confirms in a window.
func eventPublisher() {
	channel := openChannel()
	declareEventExchange(channel)
	must(channel.Confirm(false))
	say("ready", nil)
	orders := bufio.NewScanner(os.Stdin)
	for burst := 1; orders.Scan(); burst++ {
		goesOn, err := readOrder(orders.Text())
		must(err)
		firstAt := wallClock()
		window := make(chan *amqp.DeferredConfirmation, publishWindow)
		done := make(chan struct{})
		go func() {
			for confirmation := range window {
				awaitConfirm(confirmation)
			}
			close(done)
		}()
		count := 0
		for ; goesOn(count); count++ {
			window <- publish(channel, makeEvent(burst, count, 0))
		}
		close(window)
		<-done
		awaitConfirm(publish(channel, makeEvent(burst, count, count+1)))
		say("published", map[string]any{
			"burst": burst, "count": count + 1, "first_at": firstAt, "confirmed_at": wallClock(),
		})
	}
}

func publish(channel *amqp.Channel, e event) *amqp.DeferredConfirmation {
	body, err := json.Marshal(e)
	must(err)
	confirmation, err := channel.PublishWithDeferredConfirmWithContext(
		context.Background(), eventExchange, eventType, false, false,
		amqp.Publishing{ContentType: contentType, DeliveryMode: amqp.Persistent, Body: body},
	)
	must(err)
	return confirmation
}

func awaitConfirm(confirmation *amqp.DeferredConfirmation) {
	if !confirmation.Wait() {
		must(errors.New("the broker refused an event"))
	}
}

// readOrder turns `count N` or `seconds S` into whether to go on after so many events. The last
// event, which carries the total, is not counted.
func readOrder(order string) (func(int) bool, error) {
	word, amount, _ := strings.Cut(strings.TrimSpace(order), " ")
	number, err := strconv.ParseFloat(amount, 64)
	if err != nil {
		return nil, err
	}
	switch word {
	case "count":
		return func(done int) bool { return done < int(number)-1 }, nil
	case "seconds":
		end := time.Now().Add(time.Duration(number * float64(time.Second)))
		return func(int) bool { return time.Now().Before(end) }, nil
	}
	return nil, fmt.Errorf("orders are 'count N' and 'seconds S', not %q", order)
}
